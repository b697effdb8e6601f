"""How a fleet is judged: by what it does in the long run, not from an empty start.

One rule, all of it simulated:

* A run for each of `NUM_SEEDS` seeds, of 2,000 conversations (`Request.fewest`) or more: so many
  that `NUM_BEYOND` of those counted lie beyond the percentile, and so long that the first fifth,
  which is not counted, lasts as long as a conversation does (E2E at the percentile).
* Each figure is the worst of the seeds, so every limit is kept with each of them. (The worst of
  three is above the median of what seeds give with a probability of 7/8, however they spread.)
* Headroom: with `MORE_LOAD` times the load, evenly spaced, the turns under way grow by fewer than
  `MOST_GROWTH` for each conversation that comes. A fleet of which more is asked than it carries
  has to fall behind; so at the load itself at most `MOST_USE` of what it carries is asked of it.

`MOST_TURNS` bounds a run. A percentile that it cannot support is refused; where it is too short for
the fleet to fill up, that is told (`Runs.is_filled`).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from conserve_sglang.core.errors import PlanError
from conserve_sglang.planning.load import Load
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.score import (
    MOST_GROWTH,
    PER_WORKER,
    WARM_UP,
    Fleet,
    Played,
    Runs,
    Score,
    play,
    simulate,
    sizes,
)
from conserve_sglang.sim import Beyond, ConversationRecord, Outcome

NUM_SEEDS = 3
NUM_BEYOND = 10
MOST_TURNS = 60_000
FEWEST_LONG = 250
"""Of conversations with very many turns."""
MORE_LOAD = 1.05
MOST_USE = (1 + MOST_GROWTH) / MORE_LOAD


def most_conversations(load: Load) -> int:
    """The most conversations of a run."""
    return max(FEWEST_LONG, int(MOST_TURNS / load.turns_per_conversation))


def num_beyond(num: int, level: float) -> int:
    """How many of the counted conversations of a run lie beyond a percentile."""
    return math.floor(num * (1 - 1 / WARM_UP) * (1 - level) + 1e-9)


def check_level(load: Load, level: float) -> None:
    """Raises PlanError for a percentile that the longest run does not support."""
    most = most_conversations(load)
    if num_beyond(most, level) < NUM_BEYOND:
        best = math.floor(1000 * (1 - NUM_BEYOND / (most * (1 - 1 / WARM_UP)))) / 10
        raise PlanError(
            f"--percentile {level * 100:g}: a run is simulated with at most {most:,} of these"
            f" conversations ({MOST_TURNS:,} turns), of which fewer than {NUM_BEYOND} would lie"
            f" beyond it; give {best:g} or less"
        )


def num_to_judge(
    fleet: Fleet, load: Load, rate_per_s: float, level: float, e2e_s: float, fewest: int
) -> int:
    """The conversations of a run that judges a fleet, if one lasts `e2e_s`."""
    counts, scale = sizes(fleet.counts)
    beyond = NUM_BEYOND / ((1 - level) * (1 - 1 / WARM_UP))
    filled = WARM_UP * e2e_s * rate_per_s * scale if math.isfinite(e2e_s) else 0.0
    wanted = max(fewest, PER_WORKER * sum(counts.values()), beyond, filled * 1.1)
    return min(math.ceil(wanted), most_conversations(load))


def judge(
    fleet: Fleet,
    request: Request,
    rate_per_s: float,
    e2e_s: float,
    is_hopeless: Callable[[Score], bool] = lambda score: False,
) -> tuple[Score, tuple[Score, ...]]:
    """The worst figures of all seeds, and each seed's own, at a load. Stops where it `is_hopeless`
    already: a limit that is broken with one seed is broken. `e2e_s`: about how long a conversation
    lasts."""
    load, targets, seed = request.load, request.targets, request.seed
    num = num_to_judge(fleet, load, rate_per_s, targets.level, e2e_s, request.fewest)
    growth = growth_of(play(fleet, load, rate_per_s * MORE_LOAD, num, seed, is_even=True))
    scores: list[Score] = []
    for number in range(NUM_SEEDS):
        score = simulate(fleet, load, rate_per_s, targets, seed + number, num)
        scores.append(replace(score, growth=growth))
        if is_hopeless(scores[-1]):
            break
    return worst_of(scores), tuple(scores)


def growth_of(played: Played) -> float:
    """By how much the turns under way grow for each conversation that comes, from the middle fifth
    of a run to its last; a conversation that was rejected counts as under way for good."""
    fifth_s = played.arriving_s / 5
    more = _under_way(played.records, 4 * fifth_s, 5 * fifth_s)
    more -= _under_way(played.records, 2 * fifth_s, 3 * fifth_s)
    return more / (len(played.records) * 2 / 5)


def _under_way(records: Sequence[ConversationRecord], from_s: float, to_s: float) -> float:
    """The mean number of turns that were asked and not answered yet."""
    seconds = 0.0
    for record in records:
        spans = [(turn.arrived_at_s, turn.last_token_at_s) for turn in record.turns]
        if record.outcome is Outcome.REJECTED:
            spans.append((spans[-1][1] if spans else record.plan.arrived_at_s, math.inf))
        seconds += sum(max(0.0, min(end, to_s) - max(start, from_s)) for start, end in spans)
    return seconds / (to_s - from_s)


def worst_of(scores: Sequence[Score]) -> Score:
    """Of each figure the worst; power over time is the first seed's."""
    first = scores[0]
    arriving_s = min(score.runs.arriving_s for score in scores)
    e2e_s = max(score.e2e_s for score in scores)
    return replace(
        first,
        ttfet_s=max(score.ttfet_s for score in scores),
        tbt_s=max(score.tbt_s for score in scores),
        e2e_s=e2e_s,
        ttfet_p50_s=max(score.ttfet_p50_s for score in scores),
        tbt_p50_s=max(score.tbt_p50_s for score in scores),
        e2e_p50_s=max(score.e2e_p50_s for score in scores),
        attained=min(score.attained for score in scores),
        answered=min(score.answered for score in scores),
        num_conversations=sum(score.num_conversations for score in scores),
        runs=Runs(
            seeds=tuple(seed for score in scores for seed in score.runs.seeds),
            num_conversations=first.runs.num_conversations,
            arriving_s=arriving_s,
            is_judged=True,
            is_filled=arriving_s / WARM_UP >= e2e_s,
        ),
        mean_w=max(score.mean_w for score in scores),
        tokens_per_joule=min(score.tokens_per_joule for score in scores),
        beyond=_farthest(one for score in scores for one in score.beyond),
    )


def _farthest(beyond: Iterable[Beyond]) -> tuple[Beyond, ...]:
    found: dict[tuple[str, str, str], Beyond] = {}
    for one in beyond:
        key = one.tier, one.profile, one.what
        if key not in found or one.reached > found[key].reached:
            found[key] = one
    return tuple(found.values())


def how_judged(score: Score) -> str:
    """What figures rest on, in words."""
    runs, percent = score.runs, f"{MORE_LOAD - 1:.0%}"
    num, lasting = f"{runs.num_conversations:,} conversations", f"{runs.arriving_s:,.0f} s"
    if not runs.is_judged:
        return f"one short run from an empty start: {num} within {lasting}"
    said = (
        f"{len(runs.seeds)} runs of {num} within {lasting} or more, the first fifth not counted;"
        f" seeds {', '.join(map(str, runs.seeds))}, of each figure the worst"
    )
    if score.growth is not None:
        falls = "it does not fall behind" if score.is_steady else "it falls behind"
        said += f"; with {percent} more load {falls}"
    if not runs.is_filled:
        said += (
            "; conversations last longer than that fifth, so the fleet was still filling up: in the"
            " long run its load is higher"
        )
    return said
