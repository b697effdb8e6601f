import asyncio
from functools import partial
from typing import Any

import pytest

from conserve_sglang.core.ids import TenantId
from conserve_sglang.router.ports import Question, Subject, Told
from conserve_sglang.router.processes import remote, talk
from conserve_sglang.router.processes.remote import MAX_HISTORIES, RemoteAbout

TENANT = TenantId("a")
ANSWER = Told(200, b"application/json", b"{}")


def history(number: int) -> Question:
    return Question(Subject.HISTORY, TENANT, b"resp_%d" % number)


async def test_few_histories_are_on_their_way_at_a_time_and_other_questions_pass_them() -> None:
    said: list[Any] = []
    heard: list[tuple[int, Told]] = []

    def hear(number: int, told: Told) -> None:
        heard.append((number, told))

    about = RemoteAbout(said.append)
    for number in range(3 * MAX_HISTORIES):
        about.ask(history(number), partial(hear, number))
    assert [asked.question for asked in said] == [history(n) for n in range(MAX_HISTORIES)]
    about.ask(Question(Subject.HEALTH), partial(hear, -1))
    assert said[-1].question.subject is Subject.HEALTH
    for asked in said:  # grows as it is answered
        about.said(talk.Said(asked.number, ANSWER))
    assert sorted(number for number, _ in heard) == list(range(-1, 3 * MAX_HISTORIES))
    assert all(told == ANSWER for _, told in heard)


@pytest.mark.parametrize("subject", [Subject.HISTORY, Subject.FORGET])
async def test_silent_brain_is_answered_for_in_time(
    monkeypatch: pytest.MonkeyPatch, subject: Subject
) -> None:
    monkeypatch.setattr(remote, "ANSWER_TIMEOUT_S", 0.01)
    said: list[Any] = []
    heard: list[Told] = []
    about = RemoteAbout(said.append)
    for _ in range(2 * MAX_HISTORIES):
        about.ask(Question(subject, TENANT, b"resp_1"), heard.append)
    await asyncio.sleep(0.1)
    assert [told.status for told in heard] == [503] * 2 * MAX_HISTORIES
    assert heard[0].retry_after_s == 1
    assert b'"router_busy"' in heard[0].body
    num_said = len(said)
    for asked in tuple(said):  # late answers are nobody's, and those given up are not asked for
        about.said(talk.Said(asked.number, ANSWER))
    assert len(heard) == 2 * MAX_HISTORIES
    assert len(said) == num_said
    about.ask(Question(subject, TENANT, b"resp_2"), heard.append)
    about.said(talk.Said(said[-1].number, ANSWER))
    assert heard[-1] == ANSWER


async def test_questions_are_answered_when_the_brain_is_gone() -> None:
    heard: list[Told] = []
    about = RemoteAbout(lambda message: None)
    for subject in Subject:
        about.ask(Question(subject, TENANT, b"x"), heard.append)
    about.brain_gone()
    assert [told.status for told in heard] == [503] * len(Subject)
