"""Why each turn of a conversation ran where it ran, noted as it happens and told on request.

The first and the last turns of a conversation are kept, each as one packed record, in a string of
bytes on the conversation itself: 34 bytes a turn, so that 100,000 conversations fit. What failed is
rare, and lies apart. Seconds are kept, and told, to three digits.
"""

import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from conserve_sglang.core.ids import ConversationId, TurnId, WorkerId
from conserve_sglang.dispatch import (
    Command,
    Event,
    FailureCause,
    FirstToken,
    RejectTurn,
    SendTurn,
    TurnAbandoned,
    TurnArrived,
    TurnDone,
    TurnFailed,
    TurnInterrupted,
)
from conserve_sglang.policy.api import PlacementReason, RejectReason
from conserve_sglang.router.because import because, ended, what_failed
from conserve_sglang.router.conversations import Conversation

MAX_FAILURES = 3  # of a turn
_RECORD = struct.Struct("<IIHHBBBBIIIeee")
_SIZE = _RECORD.size
_FAILURE = struct.Struct("<IHHB")  # of which turn, its two workers, the cause
_TICKS_PER_S = 8  # of arrivals; 32 bits of them are 17 years
_MOST = 0xFFFF_FFFF
_MOST_S = 65_000.0  # in 16 bits
_NOBODY = 0xFFFF
_NONE = 0xFF
_NEVER = -1.0
_UNSAID = ConversationId("")  # a record lies with its conversation
_INTERRUPTED = len(FailureCause)
_REASONS = {reason: n for n, reason in enumerate(PlacementReason)}
_CAUSES = {cause: n for n, cause in enumerate(FailureCause)}
_REJECTIONS = {reason: n for n, reason in enumerate(RejectReason)}
_OPEN, _ANSWERED, _UNANSWERED, _REJECTED = range(4)


class _Noted:
    """One turn that is not over, or one read back."""

    __slots__ = (
        "arrived_at_s",
        "cached_tokens",
        "conversation_id",
        "decoder",
        "end",
        "failures",
        "first_s",
        "index",
        "num_attempts",
        "output_tokens",
        "prefiller",
        "prompt_tokens",
        "reason",
        "rejection",
        "sent_s",
        "total_s",
    )

    def __init__(self, conversation_id: ConversationId, prompt_tokens: int, now: float) -> None:
        self.conversation_id = conversation_id
        self.prompt_tokens = prompt_tokens  # estimated, until it is answered
        self.arrived_at_s = now
        self.index = 0
        self.decoder = self.prefiller = _NOBODY
        self.reason = self.rejection = _NONE
        self.end = _OPEN
        self.num_attempts = 0
        self.cached_tokens = self.output_tokens = 0
        self.sent_s = self.first_s = self.total_s = _NEVER
        self.failures: list[tuple[int, int, int]] | None = None  # decoder, prefiller, cause

    def pack(self, ticks: int) -> bytes:
        """The record; `ticks` tells the time of its arrival."""
        try:
            return _RECORD.pack(
                ticks, self.index, self.decoder, self.prefiller, self.reason, self.end,
                self.rejection, self.num_attempts, self.prompt_tokens, self.cached_tokens,
                self.output_tokens, self.sent_s, self.first_s, self.total_s,
            )  # fmt: skip
        except (struct.error, OverflowError):  # what does not fit is the most that does
            tokens = self.prompt_tokens, self.cached_tokens, self.output_tokens
            times = self.sent_s, self.first_s, self.total_s
            return _RECORD.pack(
                ticks & _MOST, self.index & _MOST, self.decoder, self.prefiller, self.reason,
                self.end, self.rejection, min(self.num_attempts, 0xFF),
                *(max(0, min(each, _MOST)) for each in tokens),
                *(min(each, _MOST_S) for each in times),
            )  # fmt: skip

    @classmethod
    def unpack(cls, record: bytes, begin_s: float) -> "_Noted":
        """The turn a record was made of."""
        noted = cls(_UNSAID, 0, _NEVER)
        (
            ticks, noted.index, noted.decoder, noted.prefiller, noted.reason, noted.end,
            noted.rejection, noted.num_attempts, noted.prompt_tokens, noted.cached_tokens,
            noted.output_tokens, noted.sent_s, noted.first_s, noted.total_s,
        ) = _RECORD.unpack(record)  # fmt: skip
        noted.arrived_at_s = begin_s + ticks / _TICKS_PER_S
        return noted


class Journal:
    """Listens to what the dispatcher is told and answers. `most`: how many first and how many
    last turns are kept of a conversation; 0: nothing is noted."""

    def __init__(
        self,
        find: Callable[[ConversationId], Conversation | None],
        clock: Callable[[], float],
        most: int,
    ) -> None:
        self._find = find
        self._most_bytes = 2 * most * _SIZE
        self._head, self._tail = most * _SIZE, (most + 1) * _SIZE
        self._begin_s = now = clock()
        self._wall_less_clock_s = time.time() - now
        self._open: dict[TurnId, _Noted] = {}
        self._workers: list[WorkerId] = []
        self._numbers: dict[WorkerId, int] = {}
        self._on_event: dict[type[Any], Callable[[Any, float], None]] = {
            TurnArrived: self._arrived,
            FirstToken: self._first_token,
            TurnDone: self._done,
            TurnFailed: self._failed,
            TurnInterrupted: self._failed,
            TurnAbandoned: self._abandoned,
        }

    def note(self, event: Event, commands: list[Command], now: float) -> None:
        """Take in one step of the dispatcher."""
        if not self._most_bytes:
            return
        note = self._on_event.get(type(event))
        if note is not None:
            note(event, now)
        for command in commands:
            if isinstance(command, SendTurn):
                self._sent(command, now)
            elif isinstance(command, RejectTurn):
                noted = self._open.get(command.turn_id)
                if noted is not None:
                    noted.rejection = _REJECTIONS[command.reason]
                    self._close(command.turn_id, _REJECTED, now)

    def told(self, conversation: Conversation) -> list[dict[str, Any]]:
        """The turns kept of a conversation, then its open ones; in order of arrival."""
        kept, begin_s = conversation.past_turns, self._begin_s
        turns = [_Noted.unpack(kept[at : at + _SIZE], begin_s) for at in range(0, len(kept), _SIZE)]
        for index, *failure in _FAILURE.iter_unpack(conversation.failed_attempts):
            for noted in turns:
                if noted.index == index:
                    noted.failures = [*(noted.failures or []), tuple(failure)]
        turns += [
            noted for noted in self._open.values() if noted.conversation_id == conversation.key
        ]
        turns.sort(key=lambda noted: (noted.arrived_at_s, noted.index))
        return [self._described(noted) for noted in turns]

    # events

    def _arrived(self, event: TurnArrived, now: float) -> None:
        self._open[event.turn_id] = _Noted(event.conversation_id, event.input_tokens, now)

    def _sent(self, command: SendTurn, now: float) -> None:
        noted = self._open.get(command.turn_id)
        if noted is None:
            return
        noted.index = command.turn_index
        noted.decoder = self._number(command.decoder)
        noted.prefiller = _NOBODY if command.prefiller is None else self._number(command.prefiller)
        noted.reason = _REASONS[command.reason]
        noted.num_attempts = command.attempt
        if noted.sent_s < 0:
            noted.sent_s = now - noted.arrived_at_s

    def _first_token(self, event: FirstToken, now: float) -> None:
        noted = self._open.get(event.turn_id)
        if noted is not None and noted.first_s < 0:
            noted.first_s = now - noted.arrived_at_s

    def _done(self, event: TurnDone, now: float) -> None:
        noted = self._open.get(event.turn_id)
        if noted is not None:
            noted.prompt_tokens = event.prompt_tokens
            noted.cached_tokens = event.cached_tokens
            noted.output_tokens = event.output_tokens
            self._close(event.turn_id, _ANSWERED, now)

    def _failed(self, event: TurnFailed | TurnInterrupted, now: float) -> None:
        noted = self._open.get(event.turn_id)
        if noted is not None:
            cause = _CAUSES[event.cause] if isinstance(event, TurnFailed) else _INTERRUPTED
            failure = (noted.decoder, noted.prefiller, cause)
            noted.failures = [*(noted.failures or []), failure]

    def _abandoned(self, event: TurnAbandoned, now: float) -> None:
        self._close(event.turn_id, _UNANSWERED, now)

    def _close(self, turn_id: TurnId, end: int, now: float) -> None:
        noted = self._open.pop(turn_id, None)
        if noted is None:
            return
        conversation = self._find(noted.conversation_id)
        if conversation is None:
            return
        noted.end = end
        arrived_at_s, past = noted.arrived_at_s, conversation.past_turns
        noted.total_s = now - arrived_at_s
        packed = noted.pack(int((arrived_at_s - self._begin_s) * _TICKS_PER_S))
        if len(past) < self._most_bytes:
            conversation.past_turns = past + packed
        else:
            conversation.past_turns = past[: self._head] + past[self._tail :] + packed
        if noted.failures or conversation.failed_attempts:
            self._keep_failures(conversation, noted)

    @staticmethod
    def _keep_failures(conversation: Conversation, noted: _Noted) -> None:
        """Keep those of the turns that are kept, this one's with them."""
        past = conversation.past_turns
        kept = {_RECORD.unpack_from(past, at)[1] for at in range(0, len(past), _SIZE)}
        failed = [
            *_FAILURE.iter_unpack(conversation.failed_attempts),
            *((noted.index, *failure) for failure in (noted.failures or ())[:MAX_FAILURES]),
        ]
        conversation.failed_attempts = b"".join(
            _FAILURE.pack(*each) for each in failed if each[0] in kept
        )

    def _number(self, worker_id: WorkerId) -> int:
        number = self._numbers.get(worker_id)
        if number is None:
            number = self._numbers[worker_id] = min(len(self._workers), _NOBODY - 1)
            self._workers.append(worker_id)
        return number

    # telling

    def _described(self, noted: _Noted) -> dict[str, Any]:
        decoder, prefiller = self._name(noted.decoder), self._name(noted.prefiller)
        reason = None if noted.reason == _NONE else tuple(PlacementReason)[noted.reason]
        rejection = None if noted.rejection == _NONE else tuple(RejectReason)[noted.rejection]
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self._wall(noted.arrived_at_s)))
        described: dict[str, Any] = {
            "turn": noted.index or None,
            "arrived_at": f"{at}Z",
            "state": ended(noted.end, noted.sent_s >= 0, noted.first_s >= 0),
            "decoder": decoder,
            "prefiller": prefiller,
            "reason": None if reason is None else reason.value,
            "because": because(reason, rejection, decoder, prefiller),
            "tokens": _tokens(noted),
            "queued_s": _seconds(noted.sent_s),
            "first_byte_s": _seconds(noted.first_s),
            "total_s": _seconds(noted.total_s),
            "attempts": noted.num_attempts,
        }
        failed = list(self._failures(noted))
        if failed:
            described["failed_attempts"] = failed
        return described

    def _failures(self, noted: _Noted) -> Iterator[dict[str, Any]]:
        for decoder, prefiller, cause in noted.failures or ():
            name = "interrupted" if cause == _INTERRUPTED else tuple(FailureCause)[cause].value
            yield {
                "decoder": self._name(decoder),
                "prefiller": self._name(prefiller),
                "cause": name,
                "because": what_failed(name),
            }

    def _name(self, number: int) -> WorkerId | None:
        return None if number == _NOBODY else self._workers[number]

    def _wall(self, at_s: float) -> float:
        return self._wall_less_clock_s + at_s


def _tokens(noted: _Noted) -> dict[str, int]:
    if noted.end != _ANSWERED:
        return {"prompt_estimated": noted.prompt_tokens}
    return {
        "prompt": noted.prompt_tokens,
        "cached": noted.cached_tokens,
        "output": noted.output_tokens,
    }


def _seconds(value: float) -> float | None:
    return None if value < 0 else round(float(f"{value:.3g}"), 4)
