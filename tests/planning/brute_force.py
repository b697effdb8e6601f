"""Every choice of counts, one after the other: what the integer program is held against."""

import itertools
from collections.abc import Iterator

from conserve_sglang.core.worker import Role
from conserve_sglang.planning.problem import Answer, Column, Objective, Problem, answer_of

Choice = tuple[Column, int] | None


def best(problem: Problem) -> Answer | None:
    """The best answer of all, or None."""
    answers = [answer for answer in answers_of(problem) if keeps(problem, answer)]
    return min(answers, key=lambda answer: answer.value(problem.objective), default=None)


def answers_of(problem: Problem) -> Iterator[Answer]:
    """Each group unused, or with one of its columns in some number."""
    groups: dict[tuple[str, Role], list[Choice]] = {}
    for column in problem.columns:
        choices = groups.setdefault(column.config.group, [None])
        most = min(
            one.gpus // column.config.tp
            for one in problem.limits.gpus
            if one.tier == column.config.tier and one.min_tp <= column.config.tp
        )
        choices.extend((column, count) for count in range(column.min_count, most + 1))
    for chosen in itertools.product(*groups.values()):
        yield answer_of(problem, dict(choice for choice in chosen if choice is not None))


def keeps(problem: Problem, answer: Answer) -> bool:
    """Whether an answer is within all limits."""
    limits = problem.limits
    for one in limits.gpus:
        used = sum(
            count * column.config.tp
            for column, count in answer.counts.items()
            if column.config.tier == one.tier and column.config.tp >= one.min_tp
        )
        if used > one.gpus:
            return False
    pairs = (
        (limits.peak_w, answer.peak_w),
        (limits.mean_w, answer.mean_w),
        (limits.ttfet_s, answer.ttfet_s),
        (limits.tbt_s, answer.tbt_s),
        (limits.e2e_s, answer.e2e_s),
    )
    is_carried = answer.load_per_s >= limits.load_per_s * (1 - 1e-9)
    if problem.objective is Objective.LOAD:
        is_carried = is_carried and answer.load_per_s > 0
    return is_carried and all(most is None or value <= most + 1e-9 for most, value in pairs)
