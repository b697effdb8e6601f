"""Conversations that stand for a generator's."""

import random
from collections.abc import Callable, Iterable

from conserve_sglang.workload import ConversationPlan

NUM_STANDING = 2000


def standing_for(
    generate: Callable[[int, random.Random], Iterable[ConversationPlan]],
) -> tuple[ConversationPlan, ...]:
    """Always the same ones, so that what is taken from them, as the factor that lengths are scaled
    by, does not depend on how many are drawn, or with which seed."""
    return tuple(generate(NUM_STANDING, random.Random(0)))
