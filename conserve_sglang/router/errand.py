"""Small requests to a worker on a client's behalf that are no turns: nothing is placed or kept."""

import asyncio

import msgspec

from conserve_sglang.core.errors import WorkerError, clause
from conserve_sglang.router.anthropic import CountCall
from conserve_sglang.router.client import ClientConnection
from conserve_sglang.router.payload import Payload
from conserve_sglang.router.problem import Problem, from_worker
from conserve_sglang.workers.fetch import fetch
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.unreadable import UNREADABLE

TIMEOUT_S = 30.0
_JSON = [(b"content-type", b"application/json")]


class _Tokenized(msgspec.Struct):
    count: int


_tokenized = msgspec.json.Decoder(_Tokenized)


class Errand:
    """Waits for a worker's answer, and gives up when the client leaves."""

    def __init__(self, client: ClientConnection) -> None:
        self._client: ClientConnection | None = client
        self._task: asyncio.Task[None] | None = None

    def count_tokens(self, pool: ConnectionPool, payload: Payload, call: CountCall) -> None:
        """Have a worker tokenize a prompt, and tell how many tokens it has."""
        work = self._count_tokens(pool, b"{" + bytes(payload.rest), call)
        self._task = asyncio.get_running_loop().create_task(work)

    async def _count_tokens(self, pool: ConnectionPool, prompt: bytes, call: CountCall) -> None:
        try:
            status, body = await fetch(
                pool, "POST", "/v1/tokenize", body=prompt, timeout_s=TIMEOUT_S
            )
            count = _tokenized.decode(body).count if status == 200 else 0
        except (WorkerError, *UNREADABLE) as error:
            self._fail(Problem(status=502, code="worker_failed", message=_failed(clause(error))))
        else:
            client = self._client
            if status != 200:
                self._fail(from_worker(status, body))
            elif client is not None:
                client.answer(200, _JSON, call.told(count), call.header_lines)

    def _fail(self, problem: Problem) -> None:
        if self._client is not None:
            self._client.answer_problem(problem)

    # Asker

    def client_gone(self) -> None:
        self._client = None
        if self._task is not None:
            self._task.cancel()

    def client_slow(self) -> None:
        pass

    def client_ready(self) -> None:
        pass


def _failed(why: str) -> str:
    return f"The worker could not count the tokens: {why}. Try again."
