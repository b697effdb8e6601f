"""What is observed of workers and of conversations, by a script of events."""

import pytest

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import FirstToken, KvMoved, TurnDone, WorkerLost
from conserve_sglang.dispatch.speeds import Speeds, tbt_of_answer
from tests.builders import D0, P0, Desk, an_arrival


def answer(desk: Desk, turn: int, prompt: int, output: int, times: tuple[float, float]) -> None:
    desk.now = times[0]
    desk.tell(FirstToken(turn_id=TurnId(turn)))
    desk.now = times[1]
    desk.tell(
        TurnDone(turn_id=TurnId(turn), prompt_tokens=prompt, output_tokens=output, cached_tokens=0)
    )


def test_a_prefillers_rate_leaves_out_what_a_prompt_waited_for_others() -> None:
    desk = Desk("p0", "d0", capacity=100_000)
    ledger = desk.dispatcher._bookings.ledger
    desk.tell(an_arrival(1, "a", 2000))
    desk.tell(an_arrival(2, "b", 4000))
    assert ledger.pending_tokens(P0) == 6000
    desk.now = 0.1
    desk.tell(FirstToken(turn_id=TurnId(1)))
    assert (ledger.pending_tokens(P0), ledger.num_running(D0)) == (4000, 2)
    answer(desk, 2, 4000, 11, (0.5, 1.0))
    assert ledger.prefill_s_per_token(P0) == pytest.approx(0.4 / 4000)
    pace = ledger.pace(D0)
    assert pace is not None
    assert pace.tbt_s == pytest.approx(0.05)
    assert pace.num_running == 2
    answer(desk, 1, 2000, 11, (1.0, 2.1))
    assert ledger.prefill_s_per_token(P0) == pytest.approx((0.4 / 4000 + 0.1 / 2000) / 2)


def test_short_prompts_and_answers_told_at_once_say_nothing() -> None:
    desk = Desk("p0", "d0", capacity=100_000)
    ledger = desk.dispatcher._bookings.ledger
    desk.tell(an_arrival(1, "a", 1023))
    answer(desk, 1, 1023, 11, (1.0, 2.0))
    assert ledger.prefill_s_per_token(P0) is None
    assert ledger.pace(D0) is not None
    desk.tell(an_arrival(2, "b", 5000))
    answer(desk, 2, 5000, 11, (9.0, 9.0))
    assert ledger.prefill_s_per_token(P0) is None, "a whole answer at once is no first token"


def test_moved_kv_ends_a_prefill_and_begins_no_answer() -> None:
    desk = Desk("p0", "d0", capacity=100_000)
    ledger = desk.dispatcher._bookings.ledger
    desk.tell(an_arrival(1, "a", 2000))
    desk.now = 1.0
    desk.tell(KvMoved(TurnId(1)))
    assert ledger.pending_tokens(P0) == 0
    answer(desk, 1, 2000, 11, (3.0, 3.5))
    pace = ledger.pace(D0)
    assert pace is not None
    assert pace.tbt_s == pytest.approx(0.05)
    assert ledger.prefill_s_per_token(P0) == pytest.approx(1.0 / 2000)
    desk.tell(an_arrival(2, "b", 2000))
    desk.tell(KvMoved(TurnId(2)))
    desk.now = 9.0  # the whole answer at once, and no word of a first token
    desk.tell(TurnDone(TurnId(2), 2000, 11, 0))
    assert ledger.pace(D0) == pace


def test_a_tail_turn_is_pending_on_its_decoder() -> None:
    desk = Desk("p0", "d0", capacity=100_000)
    ledger = desk.dispatcher._bookings.ledger
    desk.tell(an_arrival(1, "a", 2000))
    answer(desk, 1, 2000, 100, (1.0, 2.0))
    desk.tell(an_arrival(2, "a", 2400))
    assert (ledger.pending_tokens(D0), ledger.pending_tokens(P0)) == (300, 0)
    desk.tell(WorkerLost(worker_id=D0))
    assert ledger.pace(D0) is None, "a worker that comes back may be another one"


def test_a_conversations_history() -> None:
    desk = Desk("p0", "d0", capacity=100_000)
    desk.tell(an_arrival(1, "a", 2000))
    answer(desk, 1, 2000, 100, (1.0, 2.0))
    desk.now = 12.0
    desk.tell(an_arrival(2, "a", 2400))
    answer(desk, 2, 2400, 300, (13.0, 20.0))
    conversation = desk.dispatcher._conversations.get(ConversationId("a"))
    assert conversation is not None
    history = conversation.history
    assert history is not None
    assert (history.num_answers, history.mean_output_tokens) == (2, 200)
    assert (history.longest_output, history.longest_append) == (300, 300)
    assert (history.num_gaps, history.longest_gap_s) == (1, 10.0)


def test_means_move() -> None:
    speeds = Speeds()
    for _ in range(200):
        speeds.note_prefill(2000, 0.2)
    for _ in range(200):
        speeds.note_prefill(2000, 0.4)
    assert speeds.prefill_s_per_token == pytest.approx(0.4 / 2000, rel=0.01)
    speeds.note_prefill(2000, 0.0)
    assert speeds.prefill_s_per_token == pytest.approx(0.4 / 2000, rel=0.01)
    assert tbt_of_answer(1.0, 2.0, 1) is None
    assert tbt_of_answer(1.0, 1.0, 50) is None


def test_the_line_counts_what_decoders_lack() -> None:
    desk = Desk("p0", "d0", capacity=400_000)
    for turn in range(12):
        desk.tell(an_arrival(turn, f"c{turn}", 9000))
    order = desk.dispatcher._line.order
    assert order.num_waiting == 10, "two prompts reach the bound of 16,384 tokens of backlog"
    assert order.waiting_tokens == 90_000
    assert WorkerId("p0") == P0
