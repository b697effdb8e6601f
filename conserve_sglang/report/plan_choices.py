"""The fleets that a plan chose among: one row each, and the same letters in the table and on the
chart."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.planning import Option, Plan
from conserve_sglang.planning.plan import is_within
from conserve_sglang.report.options import broken_text, grouped, params_text, workers_text
from conserve_sglang.report.page import badge, table
from conserve_sglang.report.scale import short

MOST_KEPT, MOST_BROKEN = 12, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A fleet, and all policies that make the same of it. `letter`: its row's; none beyond those
    that are shown."""

    letter: str
    options: tuple[Option, ...]
    is_kept: bool

    @property
    def option(self) -> Option:
        """The first of them, which has the figures of all."""
        return self.options[0]


def joules_per_token(option: Option) -> float:
    """Infinite where nothing was answered."""
    rate = option.score.tokens_per_joule
    return 1 / rate if rate > 0 else math.inf


def is_drawn(option: Option) -> bool:
    """Whether it has a place on the chart."""
    return math.isfinite(option.score.ttfet_s) and math.isfinite(joules_per_token(option))


def choices_of(plan: Plan) -> list[Choice]:
    """The chosen one, those that keep all limits, best first, and those that break one."""
    kept = grouped([plan.chosen, *plan.runner_ups])
    rest = [option for option in plan.options if not is_within(plan.request, option)]
    rest = [option for option in rest if option is not plan.chosen]
    broken = grouped(sorted(rest, key=lambda option: option.value(plan.request.objective)))
    letters = map(chr, range(ord("A"), ord("Z") + 1))
    return [*_lettered(kept, MOST_KEPT, letters, True), *_lettered(broken, MOST_BROKEN, letters)]


def _lettered(
    groups: list[list[Option]], most: int, letters: Iterator[str], is_kept: bool = False
) -> Iterator[Choice]:
    for number, group in enumerate(groups):
        letter = next(letters) if number < most else ""
        yield Choice(letter=letter, options=tuple(group), is_kept=is_kept)


def choices_table(plan: Plan, choices: list[Choice]) -> str:
    """A row for each choice that has a letter."""
    level = f"p{plan.request.targets.level * 100:g}"
    columns = [
        ("fleet", False), ("policy", False), (f"TTFET {level}, s", True),
        (f"TBT {level}, ms", True), (f"E2E {level}, s", True), ("mean W", True),
        ("peak W", True), ("tokens/J", True),
    ]  # fmt: skip
    return table(columns, [_row(plan, one) for one in choices if one.letter], chosen=0)


def left_out_text(choices: list[Choice]) -> str:
    """Which fleets are in the table only, and which on the chart only; nothing where there are
    none."""
    unending = [one.letter for one in choices if one.letter and not is_drawn(one.option)]
    words = [f"Not on the chart, as TTFET never ends: {', '.join(unending)}."] if unending else []
    hidden = [one for one in choices if not one.letter and is_drawn(one.option)]
    kept = sum(one.is_kept for one in hidden)
    told = [
        f"{count} that {what}"
        for count, what in ((kept, "keep all limits"), (len(hidden) - kept, "break one"))
        if count
    ]
    if told:
        words.append(f"On the chart without a letter, and not in the table: {' and '.join(told)}.")
    return " ".join(words)


def _row(plan: Plan, choice: Choice) -> list[str]:
    option, score = choice.option, choice.option.score
    broken = "" if choice.is_kept else broken_text(plan.request, option)
    marks = [badge(broken, "bad")] if broken else []
    if not option.is_judged:
        marks.append(badge("by a short run only", "warn"))
    fleet = f'<span class="badge key">{choice.letter}</span>{escape(workers_text(option))}'
    return [
        "<br>".join([fleet, *marks]),
        _policies(choice.options),
        short(score.ttfet_s),
        short(score.tbt_s * 1e3),
        short(score.e2e_s),
        f"{score.mean_w:,.0f}",
        f"{option.peak_w:,.0f}",
        short(score.tokens_per_joule),
    ]


def _policies(options: Sequence[Option]) -> str:
    """The first one's policy, and those that make the same of the fleet, with what they set."""
    first = options[0].policy
    lines = [escape(first.name), *map(_soft, [params_text(first)] if first.params else [])]
    others = []
    for policy in (option.policy for option in options[1:]):
        own = {key: value for key, value in policy.params.items() if first.params.get(key) != value}
        more = params_text(PolicyChoice(name=policy.name, params=own))
        others.append(f"{policy.name} ({more})" if more else policy.name)
    if others:
        lines.append(_soft(f"the same figures with: {', '.join(others)}"))
    return "<br>".join(lines)


def _soft(words: str) -> str:
    return f'<span class="soft small">{escape(words)}</span>'
