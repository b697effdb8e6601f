"""Every placement and rejection can be told in words."""

import pytest

from conserve_sglang.policy import PlacementReason, RejectReason
from conserve_sglang.router.because import because


@pytest.mark.parametrize("reason", PlacementReason)
def test_every_placement_has_words(reason: PlacementReason) -> None:
    alone = because(reason, None, "d0", None)
    assert alone is not None
    assert "{" not in alone
    moved = because(reason, None, "d0", "p0")
    assert moved == f"{alone}: p0 prefilled the prompt and its KV moved to d0"


@pytest.mark.parametrize("reason", RejectReason)
def test_every_rejection_has_words(reason: RejectReason) -> None:
    told = because(None, reason, None, None)
    assert told is not None
    assert " " in told, "a name of the code, not words"


def test_nothing_is_told_while_nothing_is_decided() -> None:
    assert because(None, None, None, None) is None
