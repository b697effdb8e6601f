"""Tells trusted clients where a turn goes, and hears from them what became of it.

Such a client sends the turn to its workers by itself, so that no byte of it crosses the router: a
placement costs a small request or two, and nothing per token. The router decides, books and counts
as for its own turns. What the client does not report in time counts as abandoned. It asks its
workers for one choice: several need what `priming` does, between two requests.
"""

import asyncio
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from conserve_sglang.core.ids import TenantId, TurnId
from conserve_sglang.core.turn_tag import tagged
from conserve_sglang.dispatch import (
    AbortTurn,
    Command,
    FailureCause,
    FirstToken,
    RejectTurn,
    SendTurn,
    TurnAbandoned,
    TurnFailed,
)
from conserve_sglang.router.brain import Brain
from conserve_sglang.router.conversations import MAX_NAME_BYTES
from conserve_sglang.router.meter import Meter
from conserve_sglang.router.place_answer import (
    JSON,
    LEASE_S,
    NO_SUCH_TURN,
    bad_body,
    placement,
    reported,
    told,
)
from conserve_sglang.router.place_talk import ENDPOINTS, Over, Report, read_ask, read_report
from conserve_sglang.router.placed import Hear, PlacedTurn
from conserve_sglang.router.ports import Question, Told
from conserve_sglang.router.problem import ENDED, Problem, rejection
from conserve_sglang.router.salt import Salts
from conserve_sglang.router.wire import mark
from conserve_sglang.router.worker import Worker
from conserve_sglang.telemetry.metrics import Outcome
from conserve_sglang.workers.bootstrap import rooms
from conserve_sglang.workers.unreadable import UNREADABLE
from conserve_sglang.workers.usage import Usage

SWEEP_INTERVAL_S = 10.0


class Placements:
    """The turns that clients send by themselves, in order of their leases.

    `meter` is set before the first of them.
    """

    meter: Meter

    def __init__(self, brain: Brain, worker: Callable[[Any], Worker], clock: Callable[[], float]):
        self.tags_turns = False  # whether workers are told whose turn a request is
        self.salts: Salts | None = None  # where there are keys: what keeps tenants' KV apart
        self.new_public_id: Callable[[], str] = _random_id
        self._brain = brain
        self._worker = worker
        self._clock = clock
        self._turns: OrderedDict[TurnId, PlacedTurn] = OrderedDict()
        self._by_public_id: dict[str, PlacedTurn] = {}
        self._numbers = itertools.count(-1, -1)
        self._rooms: Iterator[int] = rooms()
        self._sweeper: asyncio.TimerHandle | None = None
        brain.carry_out_placed = self.carry_out

    def __len__(self) -> int:
        return len(self._turns)

    # clients

    def ask(self, question: Question, hear: Hear) -> None:
        """`POST /v1/place`: a new turn. `hear` is told its place when it has one."""
        try:
            ask = read_ask(question.body)
        except UNREADABLE as error:
            hear(bad_body(error))
            return
        name = question.name or (ask.conversation_id or "").encode() or None
        if name is not None and len(name) > MAX_NAME_BYTES:
            hear(bad_body(f"the conversation's name is over {MAX_NAME_BYTES} bytes"))
            return
        turn_id, public_id = TurnId(next(self._numbers)), self.new_public_id()
        endpoint = ENDPOINTS[ask.endpoint]
        turn = PlacedTurn(turn_id, public_id, question.tenant, name, endpoint, hear)
        turn.request_line = question.request_line
        turn.payload.input_tokens = ask.input_tokens
        if self.salts is not None:
            salt = self.salts.of(question.tenant)
            turn.salt = salt.member_with((ask.cache_salt or "", ask.extra_key or ""))
        if ask.last is not None:
            last = self._find(ask.last.turn, question.tenant)
            turn.is_last_known = last is not None
            if last is not None:
                self._over(last, ask.last)
        self.meter.arrived(turn)
        self._by_public_id[turn.public_id] = turn
        self._renew(turn)
        self._brain.arrive(turn)

    def report(self, question: Question, hear: Hear) -> None:
        """`POST /v1/place/report`: what became of a turn; after a failure, its next place."""
        try:
            report = read_report(question.body)
        except UNREADABLE as error:
            hear(bad_body(error))
            return
        turn = self._find(report.turn, question.tenant)
        if turn is None:
            hear(told(NO_SUCH_TURN))
            return
        if report.event == "failed":
            turn.hear = hear
            turn.start_again()
            self._renew(turn)
            cause = FailureCause(report.cause)
            self.meter.failed(turn, cause)
            self._brain.tell(TurnFailed(turn_id=turn.turn_id, cause=cause, by_answer=True))
            return
        if report.event == "first_token":
            self._renew(turn)
            self._begin(turn, report.first_token_s)
            self._brain.tell(FirstToken(turn_id=turn.turn_id))
        else:
            self._over(turn, report)
        hear(reported(turn))

    def _find(self, public_id: str, tenant: TenantId) -> PlacedTurn | None:
        """A tenant's turn that has a place."""
        turn = self._by_public_id.get(public_id)
        if turn is None or turn.tenant != tenant or turn.hear is not None:
            return None
        return turn

    def _begin(self, turn: PlacedTurn, first_token_s: float | None) -> None:
        if first_token_s is not None:
            turn.began_after(first_token_s)
        if turn.timings is None:
            self.meter.began_elsewhere(turn)

    def _over(self, turn: PlacedTurn, report: Over | Report) -> None:
        if report.event == "abandoned":
            self._abandon(turn, Outcome.CLIENT_LEFT)
            return
        self._drop(turn)
        self._begin(turn, report.first_token_s)
        usage = Usage(
            prompt_tokens=report.prompt_tokens,
            output_tokens=report.output_tokens,
            cached_tokens=report.cached_tokens,
        )
        first_s = turn.first_byte_at_s - turn.arrived_at_s if turn.has_begun else None
        self.meter.answered_elsewhere(turn, usage, first_s, report.total_s)
        self.meter.closed(turn, Outcome.ANSWERED, usage)
        turn.speaks_to_user = turn.has_begun and report.has_called_tools is False
        self._brain.answered(turn, usage)
        if not (turn.speaks_to_user or report.has_called_tools):
            turn.conversation.began_at_s = None  # nobody knows whether that was its TTFET

    # the brain

    def carry_out(self, command: Command) -> None:
        """A command about one of these turns."""
        if isinstance(command, SendTurn):
            turn = self._turns.get(command.turn_id)
            if turn is not None and turn.hear is not None:
                hear, turn.hear = turn.hear, None
                turn.command = command
                self._renew(turn)
                self.meter.sent(turn, command)
                hear(Told(200, JSON, self._placement(turn, command)))
        elif isinstance(command, RejectTurn):
            turn = self._turns.get(command.turn_id)
            if turn is not None:
                self._drop(turn)
                turn.problem = problem = rejection(command.reason, command.retry_after_s)
                self.meter.closed(turn, Outcome.REJECTED)
                self.meter.rejected(turn, command.reason)
                self._brain.unanswered(turn)
                self._refuse(turn, problem)
        elif isinstance(command, AbortTurn):
            turn = self._turns.get(command.turn_id)
            if turn is not None:  # its client finds out from the worker
                turn.problem = ENDED
                self._abandon(turn, Outcome.BROKEN_OFF)
                self._refuse(turn, ENDED)

    def _placement(self, turn: PlacedTurn, command: SendTurn) -> bytes:
        """Where the turn goes, and what is to be put into its request for that."""
        members = turn.conversation.session_field if command.keeps_kv else b""
        header, member = self._marks(turn, command)
        prefill = None
        if command.prefiller is not None:
            prefiller = self._worker(command.prefiller)
            pairing = prefiller.prefiller_fields + b"%d," % next(self._rooms)
            prefill = prefiller, pairing + turn.salt
            members = member + pairing + members
        else:
            members = member + members if command.limits is not None else member
        decode = self._worker(command.decoder), members + turn.salt
        return placement(turn, command, decode, prefill, turn.forward + header)

    def _marks(self, turn: PlacedTurn, command: SendTurn) -> tuple[bytes, bytes]:
        """What the decoder is told as the routing key: header lines, and JSON members."""
        limits = command.limits if command.prefiller is None else None
        routing_key = None if limits is None else limits.to_routing_key()
        if self.tags_turns:
            routing_key = tagged(routing_key, turn.conversation.key, command.turn_index)
        return (b"", b"") if routing_key is None else mark(turn.payload.endpoint, routing_key)

    def _refuse(self, turn: PlacedTurn, problem: Problem) -> None:
        hear, turn.hear = turn.hear, None
        if hear is not None:
            hear(told(problem))

    def _abandon(self, turn: PlacedTurn, outcome: Outcome) -> None:
        self._drop(turn)
        self.meter.closed(turn, outcome)
        self._brain.unanswered(turn)
        self._brain.tell(TurnAbandoned(turn_id=turn.turn_id))

    def _drop(self, turn: PlacedTurn) -> None:
        del self._turns[turn.turn_id]
        del self._by_public_id[turn.public_id]

    # time

    def _renew(self, turn: PlacedTurn) -> None:
        turn.expires_at_s = self._clock() + LEASE_S
        self._turns[turn.turn_id] = turn
        self._turns.move_to_end(turn.turn_id)
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(SWEEP_INTERVAL_S, self.sweep)

    def sweep(self) -> None:
        """Give up the turns whose clients were not heard of for `LEASE_S`."""
        now = self._clock()
        while self._turns:
            turn = next(iter(self._turns.values()))
            if turn.expires_at_s > now:
                break
            if turn.hear is None:
                self._abandon(turn, Outcome.CLIENT_LEFT)
            else:  # its client waits for a place, and hears of it or of the queue's end
                self._renew(turn)
        self._sweeper = None
        if self._turns:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(SWEEP_INTERVAL_S, self.sweep)

    def stop(self) -> None:
        """Let go of the timer."""
        if self._sweeper is not None:
            self._sweeper.cancel()


def _random_id() -> str:
    """A name that nobody can guess, and that says nothing of other turns."""
    return os.urandom(16).hex()
