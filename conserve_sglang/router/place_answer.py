"""What clients that place their turns are told, as JSON."""

from functools import lru_cache

import msgspec

from conserve_sglang.dispatch import SendTurn
from conserve_sglang.router.placed import PlacedTurn
from conserve_sglang.router.ports import Told, refusal
from conserve_sglang.router.problem import Problem
from conserve_sglang.router.worker import Worker

LEASE_S = 300.0
JSON = b"application/json"
_text = msgspec.json.encode
NO_SUCH_TURN = Problem(
    status=404,
    code="turn_not_found",
    message="There is no such turn: it was reported as over, not heard of for"
    f" {LEASE_S:g} s, or its decoder was lost or removed. Ask for a place again.",
)


def placement(
    turn: PlacedTurn,
    command: SendTurn,
    decoder: tuple[Worker, bytes],
    prefiller: tuple[Worker, bytes] | None,
    header_lines: bytes,
) -> bytes:
    """Where a turn goes; each worker with the members for its request, each ended by a comma."""
    prefill = b"null"
    if prefiller is not None:
        prefill = b'{%b,"fields":%b}' % (_whereabouts(prefiller[0]), _object(prefiller[1]))
    headers = b"{}"
    if header_lines:
        pairs = (line.partition(b": ") for line in header_lines.split(b"\r\n") if line)
        headers = _text({name.decode(): value.decode() for name, _, value in pairs})
    last = b"" if turn.is_last_known is None else b',"last_known":%b' % _text(turn.is_last_known)
    return (
        b'{"object":"placement","turn":"%b","conversation_id":%b,"reason":"%b","attempt":%d,'
        b'"decoder":{%b,"headers":%b,"fields":%b},"prefiller":%b%b}'
    ) % (
        turn.public_id.encode(),
        _text(turn.conversation.name.decode("utf-8", "replace")),
        command.reason.value.encode(),
        command.attempt,
        _whereabouts(decoder[0]),
        headers,
        _object(decoder[1]),
        prefill,
        last,
    )


def reported(turn: PlacedTurn) -> Told:
    """A report was taken in."""
    body = b'{"object":"placement.report","turn":"%b"}' % turn.public_id.encode()
    return Told(200, JSON, body)


def told(problem: Problem) -> Told:
    """An error as an answer."""
    return refusal(problem)


def bad_body(why: object) -> Told:
    """The body says nothing that can be used."""
    message = f"The body cannot be used: {why}. See `POST /v1/place` in README.md."
    return told(Problem(status=400, code="invalid_body", message=message))


def _object(members: bytes) -> bytes:
    """A JSON object of members that each end with a comma."""
    return b"{" + members[:-1] + b"}"


def _whereabouts(worker: Worker) -> bytes:
    plan = worker.plan
    return _whereabouts_of(plan.worker_id, worker.pool.scheme, plan.host, plan.port)


@lru_cache(maxsize=4096)
def _whereabouts_of(worker_id: str, scheme: str, host: str, port: int) -> bytes:
    url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    return b'"id":%b,"url":%b' % (_text(worker_id), _text(url))
