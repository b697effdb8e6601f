"""conserve-sglang simulate: play conversations on a tier map in virtual time."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure
from .options import JsonOption, TierMapOption, TokenizerOption

TraceOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Conversations to play.")]
SyntheticOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Generate N conversations; see --like.")
]
LikeOption = Annotated[str, typer.Option(help="mini-swe, the paper's workload, or claude-code.")]
RateOption = Annotated[
    float | None,
    typer.Option(
        metavar="R", help="Conversations per second, Poisson; else the trace's own times."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Same seed, same result to the last bit.")]
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Instead of the tier map's policy, NAME or NAME:param=value,param=value; again for"
        " more, to compare them.",
    ),
]
FiguresOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where figures go (SVG), one line a policy.")
]
MaxTurnsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Cut conversations after N turns.")
]
WindowOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="TOKENS", help="Cut conversations that outgrow this context."),
]
FittingOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Scale all lengths so that this share of conversations fits --window; cut the rest.",
    ),
]
CvOption = Annotated[
    float | None,
    typer.Option(metavar="CV", help="Gamma arrivals of this variation: above 1 for bursts."),
]
ArrivalsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Arrive as the conversations of this trace, at --rate."),
]
LoadOption = Annotated[float, typer.Option(metavar="X", help="Arrive X times as fast.")]
GapsOption = Annotated[
    float, typer.Option("--tool-gaps", metavar="X", help="Tool gaps X times as long; 0: none.")
]
KvCapacityOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="KV pool of a worker whose tier sets no max-total-tokens; else its profile's.",
    ),
]
ProfileOption = Annotated[
    list[str] | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        help="A profile to prefer, by name or YAML file; may be given again.",
    ),
]
SloOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slo",
        metavar="NAME=SECONDS",
        help="Judge by ttfet=8, tbt=0.1 (of last turns), e2e=60, several with commas, or by the"
        " tier map's slo: map. By default by 5 times the mean run alone, as the paper does.",
    ),
]
BudgetOption = Annotated[
    bool,
    typer.Option(
        "--keep-budget",
        help="Have the router's power controller keep the tier map's power or energy budget.",
    ),
]


def simulate(  # noqa: PLR0913, PLR0917 - each one is an option of the command
    tier_map: TierMapOption,
    trace: TraceOption = None,
    tokenizer: TokenizerOption = None,
    synthetic: SyntheticOption = None,
    like: LikeOption = "mini-swe",
    rate: RateOption = None,
    cv: CvOption = None,
    arrivals_of: ArrivalsOption = None,
    load: LoadOption = 1.0,
    tool_gaps: GapsOption = 1.0,
    seed: SeedOption = 0,
    policy: PolicyOption = None,
    max_turns: MaxTurnsOption = None,
    window: WindowOption = None,
    fitting: FittingOption = None,
    kv_capacity_tokens: KvCapacityOption = None,
    profile: ProfileOption = None,
    slo: SloOption = None,
    figures: FiguresOption = None,
    keeps_budget: BudgetOption = False,
    as_json: JsonOption = False,
) -> None:
    """Play conversations on simulated workers of a tier map; nothing is started.

    The router's own dispatcher places the turns; seconds and joules are modelled from profiles.
    """
    from conserve_sglang.traces import Source

    from .simulate_compare import play, show
    from .simulate_run import Wanted

    with clean_failure():
        source = Source(
            trace=trace, tokenizer=tokenizer, synthetic=synthetic, like=like, rate_per_s=rate,
            cv=cv, arrivals_of=arrivals_of, load=load, gap_factor=tool_gaps, seed=seed,
            max_turns=max_turns, window_tokens=window, fitting=fitting,
        )  # fmt: skip
        wanted = Wanted(
            policies=tuple(policy or ()),
            kv_capacity_tokens=kv_capacity_tokens,
            profiles=tuple(profile or ()),
            figures=figures,
            keeps_budget=keeps_budget,
            slo=tuple(slo or ()),
        )
        played = play(tier_map, source, wanted)
    show(played, as_json=as_json)
