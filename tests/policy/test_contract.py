"""What every registered policy must do."""

from dataclasses import dataclass, field

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.ids import WorkerId
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.core.worker import Role
from conserve_sglang.policy import POLICIES, Answer, Defer, Placement, make_policy
from conserve_sglang.policy.api import DeferReason, Reject
from tests.builders import D0, D1, P0, a_turn_view


@dataclass
class StubCluster:
    """A cluster as written down: free tokens by worker."""

    free: dict[WorkerId, int] = field(default_factory=dict)
    prefillers: tuple[WorkerId, ...] = ()
    capacity: int = 1000
    busy: tuple[WorkerId, ...] = ()

    def workers(self, role: Role) -> tuple[WorkerId, ...]:
        if role is Role.PREFILL:
            return self.prefillers
        return tuple(w for w in self.free if w.startswith(role.value[0]))

    def most_free(self, role: Role) -> WorkerId | None:
        return max(self.workers(role), key=self.free.__getitem__, default=None)

    def least_backlog_prefiller(self) -> WorkerId | None:
        return self.prefillers[0] if self.prefillers else None

    def takes_prompts(self, prefiller: WorkerId) -> bool:
        return prefiller not in self.busy

    def free_tokens(self, worker_id: WorkerId) -> int:
        return self.free[worker_id]

    def largest_capacity(self, role: Role) -> int:
        return self.capacity if self.workers(role) else 0


def ask(name: str, cluster: StubCluster, **turn: int) -> Answer:
    return make_policy(PolicyChoice(name=name, params={})).place(a_turn_view(**turn), cluster)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POLICIES)
def test_empty_cluster_defers(name: str) -> None:
    assert isinstance(ask(name, StubCluster()), Defer)


@pytest.mark.parametrize("name", POLICIES)
def test_same_question_same_answer(name: str) -> None:
    cluster = StubCluster(free={D0: 500, D1: 900}, prefillers=(P0,))
    assert ask(name, cluster) == ask(name, cluster)
    assert cluster == StubCluster(free={D0: 500, D1: 900}, prefillers=(P0,))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round-robin"}))
def test_a_turn_that_fits_nowhere_waits(name: str) -> None:
    cluster = StubCluster(free={D0: 50, D1: 60}, prefillers=(P0,))
    assert ask(name, cluster) == Defer(DeferReason.NO_KV_ROOM)


@pytest.mark.parametrize("name", ["conserve", "stock-pd"])
def test_a_turn_waits_while_prefillers_have_enough_before_them(name: str) -> None:
    cluster = StubCluster(free={D0: 500}, prefillers=(P0,), busy=(P0,))
    assert ask(name, cluster) == Defer(DeferReason.PREFILL_BACKLOG)
    assert isinstance(ask(name, cluster, input_tokens=1001), Reject), "which waiting cannot mend"


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round-robin"}))
def test_a_turn_that_can_never_fit_is_rejected(name: str) -> None:
    cluster = StubCluster(free={D0: 1000}, prefillers=(P0,))
    assert isinstance(ask(name, cluster, input_tokens=1001), Reject)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round-robin"}))
def test_the_roomiest_decoder_is_taken(name: str) -> None:
    answer = ask(name, StubCluster(free={D0: 500, D1: 900}, prefillers=(P0,)))
    assert isinstance(answer, Placement)
    assert answer.decoder == D1


def test_unknown_policy_and_parameter_are_named() -> None:
    with pytest.raises(ConfigError, match="'conserv' is unknown; use one of conserve"):
        make_policy(PolicyChoice(name="conserv", params={}))
    with pytest.raises(ConfigError, match=r"unknown parameter 'limit'.*max_local_append_tokens"):
        make_policy(PolicyChoice(name="conserve", params={"limit": 3}))
    with pytest.raises(ConfigError, match="at least 1"):
        make_policy(PolicyChoice(name="conserve", params={"max_local_append_tokens": 0}))
