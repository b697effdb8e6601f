"""A continued request becomes what it was once its KV is there."""

from array import array
from types import SimpleNamespace
from typing import Any

from conserve_sglang.core.continuation import Handoff
from conserve_sglang.plugin import handoff
from tests.plugin.stub import inside

PROMPT, SENT = [1, 2, 3, 4], [11, 12, 13]


class Grammar:
    """Follows tokens; `knows_token` as SGLang's own do, but for one of an older version."""

    def __init__(self, *, knows_token: bool = True, refuses: int | None = None) -> None:
        self.accepted: list[int] = []
        self.current_token: int | None = None
        self.knows_token = knows_token
        self.refuses = refuses

    def accept_token(self, token: int) -> None:
        if token == self.refuses:
            raise ValueError("not in the grammar")
        self.accepted.append(token)
        if self.knows_token:
            self.current_token = token


def a_req(*, num_sent: int = 3, limit: int | None = 100, grammar: Any = None) -> Any:
    mark = Handoff(num_sent=num_sent, last_id=SENT[num_sent - 1], max_new_tokens=limit)
    ids = array("q", PROMPT + SENT[: num_sent - 1])
    return SimpleNamespace(
        routing_key=mark.to_routing_key(),
        origin_input_ids=ids,
        origin_input_ids_unpadded=ids,
        output_ids=array("q"),
        sampling_params=SimpleNamespace(max_new_tokens=7),
        reasoning_tokens=1,
        _is_reasoning_over=True,
        _think_end_match_len=1,
        expected_kv_checksum=5,
        grammar=grammar,
        to_finish=None,
    )


def commit(req: Any, *, max_req_len: int = 1000, is_committed: bool = True) -> list[list[int]]:
    """Let a transfer arrive; what was counted as reasoning."""
    counted: list[list[int]] = []
    processor = SimpleNamespace(_maybe_update_reasoning_tokens=lambda req, ids: counted.append(ids))
    scheduler = SimpleNamespace(max_req_len=max_req_len, batch_result_processor=processor)

    def original(queue: Any, decode_req: Any) -> None:
        if is_committed:
            decode_req.req.output_ids.append(99)

    queue = SimpleNamespace(scheduler=scheduler)
    handoff.commit_transfer(inside()[0], original, queue, SimpleNamespace(req=req))
    return counted


def test_tokens_sent_are_answer_again_and_the_prefillers_token_gives_way() -> None:
    req = a_req()
    counted = commit(req)
    assert list(req.origin_input_ids) == list(req.origin_input_ids_unpadded) == PROMPT
    assert list(req.output_ids) == SENT
    assert counted == [SENT]
    assert (req.reasoning_tokens, req._is_reasoning_over) == (0, False)
    assert req.expected_kv_checksum == 0


def test_one_token_sent_leaves_the_prompt_as_it_is() -> None:
    req = a_req(num_sent=1)
    commit(req)
    assert list(req.origin_input_ids) == PROMPT
    assert list(req.output_ids) == SENT[:1]


def test_answer_may_become_as_long_as_it_could_have() -> None:
    for limit, max_req_len, expected in ((100, 1000, 100), (None, 1000, 995), (100, 50, 45)):
        req = a_req(limit=limit)
        commit(req, max_req_len=max_req_len)
        assert req.sampling_params.max_new_tokens == expected


def test_other_requests_and_failed_transfers_are_left_alone() -> None:
    other = a_req()
    other.routing_key = None
    assert commit(other) == []
    assert list(other.output_ids) == [99]
    failed = a_req()
    assert commit(failed, is_committed=False) == []
    assert list(failed.origin_input_ids) == PROMPT + SENT[:2]


def test_request_is_put_back_once() -> None:
    req = a_req()
    commit(req)
    assert commit(req) == []
    assert list(req.output_ids) == [*SENT, 99]


def test_grammar_follows_the_whole_answer() -> None:
    req = a_req(grammar=Grammar())
    commit(req)
    assert req.grammar.accepted == SENT


def test_grammar_that_stock_leads_over_the_last_token_is_left_before_it() -> None:
    fresh = a_req(num_sent=1, grammar=Grammar())
    commit(fresh)
    assert fresh.grammar.accepted == []
    older = a_req(grammar=Grammar(knows_token=False))
    commit(older)
    assert older.grammar.accepted == SENT[:2]
