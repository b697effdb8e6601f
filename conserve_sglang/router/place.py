"""Tells trusted clients where a turn goes, and hears from them what became of it.

Such a client sends the turn to its workers by itself, so that no byte of it crosses the router: a
placement costs two small requests, and nothing per token. The router decides and books as for its
own turns. What the client does not report in time counts as abandoned.
"""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

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
from conserve_sglang.router.conversations import MAX_NAME_BYTES, UNIDENTIFIED
from conserve_sglang.router.payload import Endpoint
from conserve_sglang.router.ports import Question, Told
from conserve_sglang.router.problem import ENDED, Problem, rejection
from conserve_sglang.router.salt import Salts
from conserve_sglang.router.wire import mark
from conserve_sglang.router.worker import Worker
from conserve_sglang.workers.bootstrap import rooms
from conserve_sglang.workers.unreadable import UNREADABLE
from conserve_sglang.workers.usage import Usage

LEASE_S = 300.0
SWEEP_INTERVAL_S = 10.0
_JSON = b"application/json"
Tokens = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Hear = Callable[[Told], None]
_ENDPOINTS = {
    "chat": Endpoint.CHAT,
    "completions": Endpoint.COMPLETION,
    "generate": Endpoint.GENERATE,
}


class _Ask(msgspec.Struct):
    input_tokens: Annotated[int, Meta(ge=1, le=1_000_000_000)]
    conversation_id: str | None = None
    endpoint: Literal["chat", "completions", "generate"] = "chat"
    cache_salt: str | None = None
    extra_key: str | None = None


class _Report(msgspec.Struct):
    turn: int
    event: Literal["first_token", "done", "failed", "abandoned"]
    prompt_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cached_tokens: Tokens = 0
    cause: Literal[
        "prefix_missing",
        "append_too_large",
        "decoder_failed",
        "prefiller_failed",
        "decoder_busy",
        "prefiller_busy",
    ] = "decoder_failed"


_ask = msgspec.json.Decoder(_Ask)
_report = msgspec.json.Decoder(_Report)


class _Counted:
    """The length of a prompt whose client counted its tokens."""

    def __init__(self, input_tokens: int) -> None:
        self.input_bytes = 0
        self.input_tokens: int | None = input_tokens


class PlacedTurn:
    """A turn its client sends by itself. Its number is negative: no process holds its sockets."""

    def __init__(self, turn_id: TurnId, tenant: TenantId, name: bytes | None, ask: _Ask) -> None:
        self.turn_id = turn_id
        self.tenant = tenant
        self.name = name
        self.conversation = UNIDENTIFIED
        self.input_tokens = 0
        self.history = None
        self.deadline_s: float | None = None
        self.payload = _Counted(ask.input_tokens)
        self.endpoint = _ENDPOINTS[ask.endpoint]
        self.salt = b""  # the member that keeps its tenant's KV apart
        self.hear: Hear | None = None  # its client waits for a placement
        self.expires_at_s = 0.0


class Placements:
    """The turns that clients send by themselves, in order of their leases."""

    def __init__(self, brain: Brain, worker: Callable[[Any], Worker], clock: Callable[[], float]):
        self.tags_turns = False  # whether workers are told whose turn a request is
        self.salts: Salts | None = None  # where there are keys: what keeps tenants' KV apart
        self._brain = brain
        self._worker = worker
        self._clock = clock
        self._turns: OrderedDict[TurnId, PlacedTurn] = OrderedDict()
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
            ask = _ask.decode(question.body)
        except UNREADABLE as error:
            hear(_told(_bad_body(error)))
            return
        name = question.name or (ask.conversation_id or "").encode() or None
        if name is not None and len(name) > MAX_NAME_BYTES:
            hear(_told(_bad_body(f"the conversation's name is over {MAX_NAME_BYTES} bytes")))
            return
        turn = PlacedTurn(TurnId(next(self._numbers)), question.tenant, name, ask)
        turn.hear = hear
        if self.salts is not None:
            salt = self.salts.of(question.tenant)
            turn.salt = salt.member_with((ask.cache_salt or "", ask.extra_key or ""))
        self._renew(turn)
        self._brain.arrive(turn)

    def report(self, question: Question, hear: Hear) -> None:
        """`POST /v1/place/report`: what became of a turn; after a failure, its next place."""
        try:
            report = _report.decode(question.body)
        except UNREADABLE as error:
            hear(_told(_bad_body(error)))
            return
        turn = self._turns.get(TurnId(report.turn))
        if turn is None or turn.tenant != question.tenant or turn.hear is not None:
            hear(_told(_NO_SUCH_TURN))
            return
        if report.event == "failed":
            turn.hear = hear
            self._renew(turn)
            cause = FailureCause(report.cause)
            self._brain.tell(TurnFailed(turn_id=turn.turn_id, cause=cause, by_answer=True))
            return
        if report.event == "first_token":
            self._renew(turn)
            self._brain.tell(FirstToken(turn_id=turn.turn_id))
        elif report.event == "done":
            self._turns.pop(turn.turn_id)
            usage = Usage(
                prompt_tokens=report.prompt_tokens,
                output_tokens=report.output_tokens,
                cached_tokens=report.cached_tokens,
            )
            self._brain.answered(turn, usage)
        else:
            self._abandon(turn)
        hear(Told(200, _JSON, b'{"object":"placement.report","turn":%d}' % turn.turn_id))

    # the brain

    def carry_out(self, command: Command) -> None:
        """A command about one of these turns."""
        if isinstance(command, SendTurn):
            turn = self._turns.get(command.turn_id)
            if turn is not None and turn.hear is not None:
                hear, turn.hear = turn.hear, None
                self._renew(turn)
                hear(Told(200, _JSON, self._placement(turn, command)))
        elif isinstance(command, RejectTurn):
            turn = self._turns.pop(command.turn_id, None)
            if turn is not None:
                self._brain.unanswered(turn)
                self._refuse(turn, rejection(command.reason, command.retry_after_s))
        elif isinstance(command, AbortTurn):
            turn = self._turns.get(command.turn_id)
            if turn is not None:  # its client finds out from the worker
                self._abandon(turn)
                self._refuse(turn, ENDED)

    def _placement(self, turn: PlacedTurn, command: SendTurn) -> bytes:
        """Where the turn goes, and what is to be put into its request for that."""
        decoder = self._worker(command.decoder)
        members = turn.conversation.session_field if command.keeps_kv else b""
        header, member = self._marks(turn, command)
        prefill = b"null"
        if command.prefiller is not None:
            prefiller = self._worker(command.prefiller)
            pairing = prefiller.prefiller_fields + b"%d," % next(self._rooms)
            members = member + pairing + members
            prefill = b'{"id":%b,"url":%b,"fields":%b}' % (
                _json(prefiller.worker_id),
                _json(_url(prefiller)),
                _object(pairing + turn.salt),
            )
        else:
            members = member + members if command.limits is not None else member
        members += turn.salt
        name, _, value = header.rstrip().partition(b": ")
        headers = {name.decode(): value.decode()} if name else {}
        return (
            b'{"object":"placement","turn":%d,"conversation_id":%b,"reason":%b,"attempt":%d,'
            b'"decoder":{"id":%b,"url":%b,"headers":%b,"fields":%b},"prefiller":%b}'
        ) % (
            turn.turn_id,
            _json(turn.conversation.name.decode("utf-8", "replace")),
            _json(command.reason.value),
            command.attempt,
            _json(decoder.worker_id),
            _json(_url(decoder)),
            _json(headers),
            _object(members),
            prefill,
        )

    def _marks(self, turn: PlacedTurn, command: SendTurn) -> tuple[bytes, bytes]:
        """What the decoder is told as the routing key: header lines, and JSON members."""
        limits = command.limits if command.prefiller is None else None
        routing_key = None if limits is None else limits.to_routing_key()
        if self.tags_turns:
            routing_key = tagged(routing_key, turn.conversation.key, command.turn_index)
        return (b"", b"") if routing_key is None else mark(turn.endpoint, routing_key)

    def _refuse(self, turn: PlacedTurn, problem: Problem) -> None:
        hear, turn.hear = turn.hear, None
        if hear is not None:
            hear(_told(problem))

    def _abandon(self, turn: PlacedTurn) -> None:
        if self._turns.pop(turn.turn_id, None) is not None:
            self._brain.unanswered(turn)
            self._brain.tell(TurnAbandoned(turn_id=turn.turn_id))

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
                self._abandon(turn)
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


_json = msgspec.json.encode
_NO_SUCH_TURN = Problem(
    status=404,
    code="turn_not_found",
    message="There is no such turn: it was reported as over, not heard of for"
    f" {LEASE_S:g} s, or its decoder was lost. Ask for a place again.",
)


def _object(members: bytes) -> bytes:
    """A JSON object of members that each end with a comma."""
    return b"{" + members[:-1] + b"}"


def _url(worker: Worker) -> str:
    host, port = worker.plan.host, worker.plan.port
    return f"{worker.pool.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _told(problem: Problem) -> Told:
    return Told(problem.status, _JSON, problem.to_json(), problem.retry_after_s)


def _bad_body(why: object) -> Problem:
    return Problem(
        status=400,
        code="invalid_body",
        message=f"The body cannot be used: {why}. See `POST /v1/place` in README.md.",
    )
