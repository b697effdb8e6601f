"""Room kept by history, whose KV is let go first, and who goes last when it is late anyway."""

from conserve_sglang.core.ids import ConversationId, TurnId
from conserve_sglang.dispatch import (
    Command,
    ConversationEnded,
    DispatchSettings,
    FirstToken,
    ReleaseConversation,
    SendTurn,
    TurnDone,
)
from tests.builders import D0, Desk, an_arrival

SETTINGS = DispatchSettings(
    reserve_output_tokens=100, reclaim_idle_s=15.0, max_prefill_backlog_tokens=2000
)


def a_desk(capacity: int = 10_000, **params: float) -> Desk:
    return Desk(
        "p0",
        "d0",
        policy="work-conserving",
        capacity=capacity,
        settings=SETTINGS,
        by_history=1,
        **params,
    )


def answer(desk: Desk, turn: int, prompt: int, output: int) -> list[Command]:
    desk.tell(FirstToken(turn_id=TurnId(turn)))
    done = TurnDone(
        turn_id=TurnId(turn), prompt_tokens=prompt, output_tokens=output, cached_tokens=0
    )
    return desk.tell(done)


def free(desk: Desk) -> int:
    return desk.dispatcher.worker_loads()[1].free_tokens


def test_room_for_the_next_turn_is_kept_until_it_comes() -> None:
    desk = a_desk()
    desk.tell(an_arrival(1, "a", 1000))
    assert free(desk) == 10_000 - 1100
    answer(desk, 1, 1000, 300)
    assert free(desk) == 10_000 - 1300 - 300, "as long an answer again"
    desk.tell(an_arrival(2, "a", 1500))
    assert free(desk) == 10_000 - 1300 - (200 + 300)
    answer(desk, 2, 1500, 50)
    assert free(desk) == 10_000 - 1550 - (200 + 300)
    desk.tell(ConversationEnded(conversation_id=ConversationId("a")))
    assert free(desk) == 10_000


def test_the_one_that_outstayed_its_own_gaps_most_is_let_go_first() -> None:
    desk = a_desk()
    for turn, name in ((1, "fast"), (2, "slow")):
        desk.tell(an_arrival(turn, name, 1900))
        answer(desk, turn, 1900, 100)
    desk.now = 1.0
    desk.tell(an_arrival(3, "fast", 2100))
    answer(desk, 3, 2100, 100)
    desk.now = 50.0
    desk.tell(an_arrival(4, "slow", 2100))
    answer(desk, 4, 2100, 100)
    desk.now = 70.0  # 20 s after the slow one's turn, 69 s after the fast one's
    commands = desk.tell(an_arrival(5, "new", 5500))
    released = [c for c in commands if isinstance(c, ReleaseConversation)]
    assert [c.conversation_id for c in released] == ["fast"], "though both may hold KV"
    assert [c.turn_id for c in commands if isinstance(c, SendTurn)] == [5]


def test_who_makes_long_gaps_is_spared_longer_than_who_does_not() -> None:
    desk = a_desk()
    for turn, name in ((1, "slow"), (2, "fast")):
        desk.tell(an_arrival(turn, name, 1900))
        answer(desk, turn, 1900, 100)
    desk.now = 50.0
    desk.tell(an_arrival(3, "slow", 2100))
    answer(desk, 3, 2100, 100)
    desk.now = 51.0
    for turn in (4, 5):
        desk.tell(an_arrival(turn, "fast", 2000 + turn))
        answer(desk, turn, 2000 + turn, 100)
        desk.now += 1.0
    desk.now = 80.0  # the slow one rests for longer, but for less than it is used to
    commands = desk.tell(an_arrival(6, "new", 6500))
    assert commands[0] == ReleaseConversation(conversation_id=ConversationId("fast"), worker_id=D0)


def test_who_is_late_goes_behind_who_may_be_in_time() -> None:
    desk = a_desk(capacity=100_000, late_after_s=10.0)
    for turn in (1, 2, 3):  # the first fills the prefiller's backlog
        desk.tell(an_arrival(turn, f"c{turn}", 3000))
    desk.now = 9.0
    desk.tell(an_arrival(4, "c4", 3000))
    desk.now = 11.0
    order = []
    for running in (1, 4, 2, 3):
        sent = desk.tell(FirstToken(turn_id=TurnId(running)))
        order += [c.turn_id for c in sent if isinstance(c, SendTurn)]
    assert order == [4, 2, 3]


def test_first_come_first_served_where_nobody_is_late_by_setting() -> None:
    desk = a_desk(capacity=100_000)
    for turn in (1, 2, 3):
        desk.tell(an_arrival(turn, f"c{turn}", 3000))
    desk.now = 50.0
    sent = desk.tell(FirstToken(turn_id=TurnId(1)))
    assert [c.turn_id for c in sent if isinstance(c, SendTurn)] == [2]


def test_room_that_was_kept_and_is_not_needed_goes_to_who_waits_for_it() -> None:
    desk = a_desk()
    for turn, prompt in ((1, 1000), (2, 4000)):
        desk.tell(an_arrival(turn, "a", prompt))
        answer(desk, turn, prompt, 10)
    assert free(desk) == 10_000 - 4010 - (2990 + 100), "as long an append and answer again"
    assert not desk.tell(an_arrival(3, "b", 3000)), "waits"
    sent = desk.tell(an_arrival(4, "a", 4020))
    assert [c.turn_id for c in sent if isinstance(c, SendTurn)] == [4, 3]
