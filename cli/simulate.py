"""conserve-sglang simulate: play conversations on a tier map in virtual time."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption, TierMapOption

PolicyOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Instead of the tier map's policy.")
]
MaxTurnsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Cut conversations after N turns.")
]
WindowOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="TOKENS", help="Cut conversations that outgrow this context."),
]
KvCapacityOption = Annotated[
    int, typer.Option(min=1, help="KV pool of a worker whose tier sets no max-total-tokens.")
]


def simulate(  # noqa: PLR0913, PLR0917 - each one is an option of the command
    tier_map: TierMapOption,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Conversations to play.")
    ] = None,
    synthetic: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Generate N conversations like the paper's."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="R", help="Conversations per second, Poisson; else the trace's own times."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same result to the last bit.")] = 0,
    policy: PolicyOption = None,
    max_turns: MaxTurnsOption = None,
    window: WindowOption = None,
    kv_capacity_tokens: KvCapacityOption = 308_448,
    as_json: JsonOption = False,
) -> None:
    """Play conversations on simulated workers of a tier map; nothing is started.

    The router's own dispatcher and policies place the turns. How long a step takes is modelled
    from unit measurements of an A40 with Qwen3-0.6B, whatever GPUs the tier map names.
    """
    from .simulate_run import Workload, run
    from .simulate_view import as_document, print_summary

    with clean_failure():
        workload = Workload(
            trace=trace,
            synthetic=synthetic,
            rate_per_s=rate,
            seed=seed,
            max_turns=max_turns,
            window_tokens=window,
        )
        result = run(tier_map, workload, policy, kv_capacity_tokens)
    if as_json:
        typer.echo(json.dumps(as_document(result), indent=2))
    else:
        print_summary(result)
