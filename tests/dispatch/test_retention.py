"""Room kept by history, whose KV is let go first, and who goes last when it is late anyway."""

from conserve_sglang.core.ids import ConversationId, TurnId
from conserve_sglang.dispatch import (
    Command,
    ConversationEnded,
    DispatchSettings,
    FirstToken,
    ReleaseConversation,
    SendTurn,
    Tick,
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


def a_priced_desk() -> Desk:
    """Two decoders of 10,000 tokens, both seen to prefill 1,000 tokens a second."""
    desk = Desk("m0", "m1", policy="work-conserving", capacity=10_000, settings=SETTINGS)
    for number, (name, prompt) in enumerate((("big", 6000), ("small", 2000)), 1):
        desk.tell(an_arrival(number, name, prompt))
        desk.now += prompt / 1000
        desk.tell(FirstToken(turn_id=TurnId(number)))
        desk.now += 5.0
        done = TurnDone(
            turn_id=TurnId(number), prompt_tokens=prompt, output_tokens=100, cached_tokens=0
        )
        desk.tell(done)
    return desk


def released(commands: list[Command]) -> list[str]:
    return [c.conversation_id for c in commands if isinstance(c, ReleaseConversation)]


def test_kv_is_let_go_when_others_have_waited_as_long_as_its_prefill_takes() -> None:
    desk = a_priced_desk()  # big rests since 11.0, small since 18.0; 6.1 and 2.1 s to bring back
    assert {each.num_conversations for each in desk.dispatcher.worker_loads()} == {1}
    assert not released(desk.tell(an_arrival(3, "new", 9500)))
    due_at_s = desk.dispatcher.next_deadline_at_s
    assert due_at_s is not None
    assert desk.now < due_at_s < desk.now + 10, "long before reclaim_idle_s"
    desk.now = due_at_s - 0.01
    assert not desk.tell(Tick())
    desk.now = due_at_s
    commands = desk.tell(Tick())
    assert len(released(commands)) == 1
    assert [c.turn_id for c in commands if isinstance(c, SendTurn)] == [3]


def test_what_has_outrun_its_own_price_most_goes_first() -> None:
    desk = a_priced_desk()
    desk.now = 40.0  # both are due by now: big after 29 s of 6.1, small after 22 s of 2.1
    assert released(desk.tell(an_arrival(3, "new", 9500))) == ["small"]


def test_kv_beside_running_turns_is_spared() -> None:
    desk = a_priced_desk()
    desk.now = 21.0  # big after 10 s of 6.1, small after 3 s of 2.1
    assert released(desk.tell(an_arrival(4, "new", 9000))) == ["big"]
    desk = a_priced_desk()
    desk.tell(an_arrival(3, "small", 2200))  # keeps the next one off its worker
    desk.tell(an_arrival(4, "runs on", 1000))
    runs_on = desk.dispatcher.conversation(ConversationId("runs on"))
    assert runs_on is not None
    assert runs_on.decoder == "m0"
    answer(desk, 3, 2200, 100)
    desk.now = 22.0  # to bring big back would stall it, which counts twice: 18.3 s; small 2.3 s
    assert released(desk.tell(an_arrival(5, "new", 9000))) == ["small"]


def test_before_any_prefill_was_seen_the_setting_holds() -> None:
    desk = Desk("m0", policy="work-conserving", capacity=10_000, settings=SETTINGS)
    desk.tell(an_arrival(1, "a", 6000))
    answer(desk, 1, 6000, 1)  # nothing came that would tell of a speed
    desk.tell(an_arrival(2, "b", 6000))
    assert desk.dispatcher.next_deadline_at_s == 15.0
