"""conserve-sglang energy: what can be measured here, and what may be set."""

from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption


def energy(
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=0.0, max=3600.0, help="Also measure for so long."),
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """List the energy counters of this machine's devices, their limits, and permissions."""
    from conserve_sglang.energy.survey import survey

    from .energy_view import print_survey

    with clean_failure():
        print_survey(survey(seconds), as_json=as_json)
