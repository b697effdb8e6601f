"""conserve-sglang energy: what can be measured here, and what may be set."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption


def energy(
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=0.0, max=3600.0, help="Also measure for so long."),
    ] = 0.0,
    meter: Annotated[
        str,
        typer.Option(
            "--meter", help="auto, zeus, nvml, replay (with --recording) or model (--profile)."
        ),
    ] = "auto",
    recording: Annotated[
        Path | None, typer.Option("--recording", metavar="FILE", help="What replay plays.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="Write what is read meanwhile, to replay."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option("--profile", metavar="NAME", help="What model makes its numbers from."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the energy counters of this machine's devices, their limits, and permissions."""
    from conserve_sglang.core.errors import ConfigError
    from conserve_sglang.energy.choose import modelled_device, open_meter
    from conserve_sglang.energy.survey import survey

    from .energy_view import print_survey

    with clean_failure():
        if record is not None and not seconds:
            raise ConfigError("--record: nothing is read for a while; add --seconds N")
        opened = (
            modelled_device(profile)
            if meter == "model"
            else open_meter(meter, recording=None if recording is None else str(recording))
        )
        print_survey(survey(opened, seconds, record), as_json=as_json)
