from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from conserve_sglang.core.ids import ConversationId, TenantId, TurnId, WorkerId
from conserve_sglang.core.local_turn import LocalLimits
from conserve_sglang.dispatch import (
    AbortTurn,
    FailureCause,
    FirstToken,
    KvMoved,
    RejectTurn,
    SendTurn,
    TenantsWeighed,
    TurnAbandoned,
    TurnFailed,
    TurnInterrupted,
)
from conserve_sglang.policy.api import PlacementReason, RejectReason
from conserve_sglang.router.processes import talk

TURN = TurnId(7 << 40)
D0, P0 = WorkerId("d0"), WorkerId("p0")
KEY = ConversationId("conv-a")
PINNED, FIRST = PlacementReason.PINNED, PlacementReason.FIRST_TURN
SAID = [
    FirstToken(TURN),
    KvMoved(TURN),
    TurnFailed(turn_id=TURN, cause=FailureCause.DECODER_BUSY, by_answer=True),
    TurnInterrupted(turn_id=TURN, output_tokens=3),
    TurnAbandoned(turn_id=TURN),
    TenantsWeighed(weights={TenantId("a"): 2.5}),
    SendTurn(TURN, KEY, D0, None, LocalLimits(5, 6), PINNED, True, 1, 2, 300),
    SendTurn(TURN, KEY, D0, P0, None, FIRST, False, 3, 1, 0, True),
    RejectTurn(turn_id=TURN, reason=RejectReason.QUEUE_FULL, retry_after_s=1.5),
    RejectTurn(turn_id=TURN, reason=RejectReason.TOO_LONG),
    AbortTurn(turn_id=TURN),
]


@pytest.mark.parametrize("said", SAID)
def test_what_was_said_is_heard(said: Any) -> None:
    wire = talk.encoder.encode([talk.carry(said)])
    (message,) = talk.from_fronts.decode(wire)
    assert isinstance(message, talk.Carried)
    assert talk.carried(message) == said
    assert [message] == talk.from_brain.decode(wire)


def test_everything_that_travels_is_tried() -> None:
    assert {type(said) for said in SAID} == set(talk.TRAVEL)


@pytest.mark.parametrize(("kind", "form"), list(zip(talk.TRAVEL, talk.FORMS, strict=True)))
def test_a_form_has_the_types_of_the_fields(kind: type[Any], form: Any) -> None:
    types = list(get_type_hints(kind).values())
    if kind is not TenantsWeighed:  # its weights are any mapping
        assert list(get_args(form)) == types


def test_a_value_of_another_type_is_refused() -> None:
    message = talk.Carried("FirstToken", msgspec.Raw(talk.encoder.encode(["seven"])))
    with pytest.raises(msgspec.ValidationError):
        talk.carried(message)
