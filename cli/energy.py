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
    from conserve_sglang.core.errors import ConfigError, MeterError
    from conserve_sglang.energy.choose import modelled_device, open_meter
    from conserve_sglang.energy.survey import nothing_found, survey

    from .energy_view import print_survey

    with clean_failure():
        if record is not None:
            _check_record(record, seconds, meter)
        try:
            opened = (
                modelled_device(profile)
                if meter == "model"
                else open_meter(meter, recording=None if recording is None else str(recording))
            )
            found = survey(opened, seconds, record)
        except MeterError as error:
            if as_json and not isinstance(error, ConfigError):
                print_survey(nothing_found(str(error)), as_json=True)
            raise
        print_survey(found, as_json=as_json)


def _check_record(path: Path, seconds: float, meter: str) -> None:
    """What can be told before anything is read. Raises ConfigError."""
    from conserve_sglang.core.errors import ConfigError

    if not seconds:
        raise ConfigError("--record: nothing is read for a while; add --seconds N")
    if meter == "model":
        raise ConfigError("--record: only what is measured is recorded; use another --meter")
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"--record {path}: cannot be written: no file can be there")
