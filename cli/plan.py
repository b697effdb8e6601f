"""conserve-sglang plan: choose which GPUs serve which phase, and write the tier map."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption

ProfilesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--profiles",
        metavar="P",
        help="A shipped profile's name, a file, or a folder of files; again for more."
        " By default all that are shipped.",
    ),
]
InventoryOption = Annotated[
    Path, typer.Option("--inventory", metavar="FILE", help="The GPUs there are (YAML).")
]
WorkloadOption = Annotated[
    Path,
    typer.Option("--workload", metavar="FILE", help="The load: a workload file (YAML) or a trace."),
]
SloOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slo",
        metavar="NAME=SECONDS",
        help="ttfet=8, tbt=0.1 (of last turns) or e2e=60; several with commas.",
    ),
]
RateOption = Annotated[
    float | None,
    typer.Option(metavar="R", help="Conversations per second, in the workload's place."),
]
PercentileOption = Annotated[
    float, typer.Option(min=1, max=99.9, help="Of the conversations that must keep the SLOs.")
]
PowerOption = Annotated[
    float | None, typer.Option(metavar="W", help="Most that all chosen GPUs may draw.")
]
EnergyOption = Annotated[
    float | None, typer.Option(metavar="KWH", help="Most that they may use in a day.")
]
ObjectiveOption = Annotated[
    str, typer.Option(help="tokens-per-joule, load, or watts (the least that may be drawn).")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where the tier map goes.")
]
ReportOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Where a report goes (HTML).")
]
ConversationsOption = Annotated[
    int,
    typer.Option(
        min=100,
        help="Of each run that judges a fleet, at least; fewer are quicker.",
    ),
]
SeedOption = Annotated[int, typer.Option(help="Of the simulated arrivals.")]
QuickOption = Annotated[
    bool, typer.Option("--quick", help="Only the choice: no comparisons, no sensitivity.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Write over a plan's own files that were edited since.")
]


def plan(  # noqa: PLR0913, PLR0917 - each one is an option of the command
    inventory: InventoryOption,
    workload: WorkloadOption,
    profiles: ProfilesOption = None,
    rate: RateOption = None,
    slo: SloOption = None,
    percentile: PercentileOption = 95.0,
    power_budget: PowerOption = None,
    energy_budget: EnergyOption = None,
    objective: ObjectiveOption = "tokens-per-joule",
    out: OutOption = None,
    report: ReportOption = None,
    seed: SeedOption = 0,
    conversations: ConversationsOption = 2000,
    quick: QuickOption = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose counts, roles, tensor parallelism, power caps and policy for a load.

    Candidates come from an integer program over profiles, and are judged in the simulator: every
    time and joule is modelled. Exit code 3 and the smallest change that would help, if no choice
    keeps all limits.
    """
    from .plan_run import Wishes, run
    from .plan_view import show

    with clean_failure():
        wishes = Wishes(
            inventory=inventory,
            workload=workload,
            profiles=tuple(profiles or ()),
            rate_per_s=rate,
            slo=tuple(slo or ()),
            percentile=percentile,
            power_budget_w=power_budget,
            energy_budget_kwh=energy_budget,
            objective=objective,
            seed=seed,
            conversations=conversations,
            out=out,
            report=report,
            is_quick=quick,
            is_forced=force,
        )
        result = run(wishes)
    show(result, as_json=as_json)
    if not result.is_feasible:
        raise typer.Exit(3)
