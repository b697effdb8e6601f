"""What every registered policy must do."""

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import PolicyChoice
from conserve_sglang.policy import POLICIES, Answer, Defer, Placement, make_policy
from conserve_sglang.policy.api import DeferReason, Reject
from conserve_sglang.policy.registry import make_served_policy
from tests.builders import D0, D1, P0, a_turn_view
from tests.policy.stub import StubCluster


def ask(name: str, cluster: StubCluster, **turn: int) -> Answer:
    return make_policy(PolicyChoice(name=name, params={})).place(a_turn_view(**turn), cluster)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", POLICIES)
def test_empty_cluster_defers(name: str) -> None:
    assert isinstance(ask(name, StubCluster()), Defer)


@pytest.mark.parametrize("name", POLICIES)
def test_same_question_same_answer(name: str) -> None:
    cluster = StubCluster(free={D0: 500, D1: 900, P0: 0}, prefillers=(P0,))
    assert ask(name, cluster) == ask(name, cluster)
    assert cluster == StubCluster(free={D0: 500, D1: 900, P0: 0}, prefillers=(P0,))


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round-robin"}))
def test_a_turn_that_fits_nowhere_waits(name: str) -> None:
    cluster = StubCluster(free={D0: 50, D1: 60, P0: 0}, prefillers=(P0,))
    assert ask(name, cluster) == Defer(DeferReason.NO_KV_ROOM)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round-robin", "colocated"}))
def test_a_turn_waits_while_prefillers_have_enough_before_them(name: str) -> None:
    cluster = StubCluster(free={D0: 500, P0: 0}, prefillers=(P0,), busy=(P0,))
    assert ask(name, cluster) == Defer(DeferReason.PREFILL_BACKLOG)
    assert isinstance(ask(name, cluster, input_tokens=1001), Reject), "which waiting cannot mend"


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round-robin"}))
def test_a_turn_that_can_never_fit_is_rejected(name: str) -> None:
    cluster = StubCluster(free={D0: 1000, P0: 0}, prefillers=(P0,))
    assert isinstance(ask(name, cluster, input_tokens=1001), Reject)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round-robin", "conserve-pack"}))
def test_the_roomiest_decoder_is_taken(name: str) -> None:
    answer = ask(name, StubCluster(free={D0: 500, D1: 900, P0: 0}, prefillers=(P0,)))
    assert isinstance(answer, Placement)
    assert answer.decoder == D1


def test_unknown_policy_and_parameter_are_named() -> None:
    with pytest.raises(ConfigError, match="'conserv' is unknown; use one of conserve"):
        make_policy(PolicyChoice(name="conserv", params={}))
    with pytest.raises(ConfigError, match=r"unknown parameter 'limit'.*max_local_append_tokens"):
        make_policy(PolicyChoice(name="conserve", params={"limit": 3}))
    with pytest.raises(ConfigError, match="at least 1"):
        make_policy(PolicyChoice(name="conserve", params={"max_local_append_tokens": 0}))


BAD_PARAMS = [
    ("coin-flip", "error_rate", 1.5),
    ("dynamo-like", "max_local_tokens", 0),
    ("dynamo-like", "max_local_ratio", 0),
    ("dynamo-like", "max_prefill_queue", -1),
    ("ampd-like", "tbt_target_s", 0),
    ("colocated", "choose", "any"),
    ("work-conserving", "max_local_append_tokens", 0),
    ("work-conserving", "stall_weight", 0),
    ("work-conserving", "late_after_s", 0),
    ("conserve-pack", "tbt_target_s", 0),
    ("conserve-pack", "margin", 0),
    ("conserve-pack", "max_local_append_tokens", 0),
]


@pytest.mark.parametrize(("name", "param", "value"), BAD_PARAMS)
def test_a_parameter_without_sense_is_refused(name: str, param: str, value: float | str) -> None:
    with pytest.raises(ConfigError, match=f"policy {name}: "):
        make_policy(PolicyChoice(name=name, params={param: value}))


@pytest.mark.parametrize("name", POLICIES)
def test_only_what_servers_can_run_is_served(name: str) -> None:
    choice = PolicyChoice(name=name, params={})
    if POLICIES[name].only_simulated is None:
        assert type(make_served_policy(choice)) is type(make_policy(choice))
        return
    with pytest.raises(ConfigError, match=f"{name} is simulated only: it would need .* simulate"):
        make_served_policy(choice)
