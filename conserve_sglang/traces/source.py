"""A workload as options ask for it: where conversations come from, cut and scaled, and when."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.traces.formats import read_trace
from conserve_sglang.traces.reading import BadLine, Trace
from conserve_sglang.traces.standing import standing_for
from conserve_sglang.workload import (
    LEAST_CV,
    MOST_CV,
    ConversationPlan,
    at_load,
    claude_code_conversations,
    cut_to_window,
    first_turns,
    gamma_arrivals,
    mini_swe_conversations,
    poisson_arrivals,
    scaled_to_window,
    shares_nothing,
    trace_arrivals,
    with_arrivals,
    with_gaps_scaled,
)

LATEST_S = 2.0**33
"""Beyond it (272 years) neighbouring times, 64-bit floats, lie more than a microsecond apart."""
NOTHING_SHARED = (
    "no later turn shares anything with the turn before: each prefills its whole prompt (in our"
    " JSONL, shared_tokens of a turn says how much of its prompt was there before)"
)
GENERATORS: dict[str, Callable[[int, random.Random], Iterator[ConversationPlan]]] = {
    "mini-swe": mini_swe_conversations,
    "claude-code": claude_code_conversations,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What to play: a `trace` or `synthetic` conversations of generator `like`, at their own times
    (`load` times as dense), by a Poisson process at `rate_per_s`, by a gamma process if `cv` is
    given too, or with the gaps of the trace `arrivals_of`.

    Lengths are scaled so that a share `fitting` fits `window_tokens`, or cut there without it.
    """

    trace: Path | None = None
    tokenizer: Path | None = None
    synthetic: int | None = None
    like: str = "mini-swe"
    rate_per_s: float | None = None
    cv: float | None = None
    arrivals_of: Path | None = None
    load: float = 1.0
    gap_factor: float = 1.0
    seed: int = 0
    max_turns: int | None = None
    window_tokens: int | None = None
    fitting: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The conversations, and what was done to get them. `num_left_out`: those whose first turn is
    larger than the window. `scaling` says how lengths were scaled; empty if they were not. `notes`:
    what else a reader has to know of them."""

    conversations: Sequence[ConversationPlan]
    bad_lines: tuple[BadLine, ...]
    num_left_out: int
    scaling: str
    notes: tuple[str, ...] = ()


def draw(source: Source) -> Drawn:
    """The workload. Same source, same conversations. Raises ConfigError for what does not fit
    together, and where no conversation is left."""
    rng = random.Random(source.seed)
    _check_numbers(source)
    try:
        trace = _conversations(source, rng)
        plans, scaling = _sized(trace.conversations, source)
        recorded, more_bad_lines = _recorded(source)
        timed = list(_timed(plans, source, rng, recorded))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not timed:
        raise ConfigError(
            f"--window {source.window_tokens}: of {len(trace.conversations)} conversations none"
            " fits with its first turn; give a larger one, or scale lengths with --fitting"
        )
    _check_clock(timed)
    return Drawn(
        conversations=timed,
        bad_lines=(*trace.bad_lines, *more_bad_lines),
        num_left_out=len(trace.conversations) - len(timed),
        scaling=scaling,
        notes=tuple(_notes(trace, timed)),
    )


def _check_numbers(source: Source) -> None:
    given = {
        "--rate": source.rate_per_s,
        "--cv": source.cv,
        "--load": source.load,
        "--tool-gaps": source.gap_factor,
        "--fitting": source.fitting,
    }
    for option, value in given.items():
        if value is not None and not isfinite(value):
            raise ConfigError(f"{option} must be a number, not {value}")
        if value is not None and value < 0 and option == "--tool-gaps":
            raise ConfigError(f"--tool-gaps must not be negative, and is {value:g}")
        if value is not None and value <= 0 and option != "--tool-gaps":
            raise ConfigError(f"{option} must be positive, and is {value:g}")
    if source.cv is not None and not LEAST_CV <= source.cv <= MOST_CV:
        raise ConfigError(f"--cv must lie between {LEAST_CV:g} and {MOST_CV:g}")
    rate = (source.rate_per_s or 1.0) * source.load
    if rate <= 0 or not isfinite(rate):
        raise ConfigError(f"--rate times --load must be a positive number, and is {rate:g}")
    if source.fitting is not None and source.fitting > 1:
        raise ConfigError(f"--fitting is a share, at most 1, and is {source.fitting:g}")
    if source.tokenizer is not None and source.trace is None:
        raise ConfigError("--tokenizer counts the text of a --trace, and there is none")


def _check_clock(plans: Sequence[ConversationPlan]) -> None:
    """Refuse times so late that the clock, a float, no longer tells short latencies apart."""
    latest_s = max(plan.arrived_at_s + sum(turn.gap_s for turn in plan.turns) for plan in plans)
    if latest_s > LATEST_S:
        raise ConfigError(
            f"conversations go on until {latest_s:.3g} s, and times are exact to a microsecond up"
            f" to {LATEST_S:.3g} s alone; raise --rate or --load, or lower --tool-gaps"
        )


def _notes(trace: Trace, played: Sequence[ConversationPlan]) -> Iterator[str]:
    yield from (f"not read: {told}" for told in trace.not_read)
    if trace.about_gaps and any(turn.gap_s for plan in played for turn in plan.turns):
        yield f"tool gaps of this file: {trace.about_gaps}"
    if shares_nothing(played):
        yield NOTHING_SHARED


def _conversations(source: Source, rng: random.Random) -> Trace:
    if (source.trace is None) == (source.synthetic is None):
        raise ConfigError("give either --trace FILE or --synthetic N")
    if source.synthetic is not None:
        if source.like not in GENERATORS:
            raise ConfigError(f"--like {source.like}: use one of {', '.join(GENERATORS)}")
        plans = tuple(GENERATORS[source.like](source.synthetic, rng))
        return Trace(conversations=plans, bad_lines=(), num_lines=len(plans))
    assert source.trace is not None
    trace = read_trace(source.trace, tokenizer=source.tokenizer)
    if not trace.conversations:
        raise ConfigError(f"{source.trace}: no line of it can be used")
    return trace


def _sized(
    given: Sequence[ConversationPlan], source: Source
) -> tuple[Sequence[ConversationPlan], str]:
    plans: Iterable[ConversationPlan] = given
    scaling = ""
    if source.max_turns is not None:
        plans = first_turns(plans, source.max_turns)
    if source.fitting is not None:
        if source.window_tokens is None:
            raise ConfigError("--fitting scales lengths to a window: say which with --window")
        scaled = scaled_to_window(
            plans, source.window_tokens, fitting=source.fitting, like=_like(source)
        )
        plans, scaling = scaled.conversations, scaled.statement()
    elif source.window_tokens is not None:
        plans = cut_to_window(plans, source.window_tokens)
    if source.gap_factor != 1:
        plans = with_gaps_scaled(plans, source.gap_factor)
    return list(plans), scaling


def _like(source: Source) -> Iterable[ConversationPlan] | None:
    """What a generator's lengths are scaled by, however many conversations are drawn."""
    if source.synthetic is None:
        return None
    standing: Iterable[ConversationPlan] = standing_for(GENERATORS[source.like])
    return standing if source.max_turns is None else first_turns(standing, source.max_turns)


def _recorded(source: Source) -> tuple[Sequence[float], tuple[BadLine, ...]]:
    """The arrival times of another trace, if they are asked for, and its bad lines."""
    path = source.arrivals_of
    if path is None:
        return (), ()
    trace = read_trace(path, tokenizer=source.tokenizer)
    bad = tuple(replace(line, file=line.file or path.name) for line in trace.bad_lines)
    return [plan.arrived_at_s for plan in trace.conversations], bad


def _timed(
    plans: Sequence[ConversationPlan],
    source: Source,
    rng: random.Random,
    recorded: Sequence[float],
) -> Iterable[ConversationPlan]:
    if source.cv is not None and (source.rate_per_s is None or source.arrivals_of is not None):
        raise ConfigError("--cv shapes the arrivals of --rate, and of no --arrivals-of")
    if source.arrivals_of is not None:
        times = trace_arrivals(recorded, source.rate_per_s)
        return at_load(with_arrivals(plans, times), source.load)
    if source.rate_per_s is not None:
        rate = source.rate_per_s * source.load
        times_of = (
            poisson_arrivals(rate, rng)
            if source.cv is None
            else gamma_arrivals(rate, source.cv, rng)
        )
        return with_arrivals(plans, times_of)
    if len(plans) > 1 and len({plan.arrived_at_s for plan in plans}) == 1:
        raise ConfigError("all these conversations arrive at once; say how fast with --rate")
    return at_load(plans, source.load)
