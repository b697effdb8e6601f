"""What replicas of a router share, in Redis."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec
import redis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from conserve_sglang.core.errors import ConfigError, clause
from conserve_sglang.state import response_scripts, scripts
from conserve_sglang.state.record import SavedConversation
from conserve_sglang.state.sqlite import SECRET_BYTES

CONNECT_TIMEOUT_S = 2.0
GRACE_S = 60.0  # what is idle lives so much longer in Redis than in a router
Call = tuple[str, tuple[str | bytes | int, ...]]
SharedError: Final = (redis.RedisError, OSError, asyncio.TimeoutError)
_SCRIPTS: Final = {
    name: text
    for module in (scripts, response_scripts)
    for name, text in vars(module).items()
    if name.isupper() and not name.startswith("_")
}
_pack = msgspec.msgpack.encode
_row = msgspec.msgpack.Decoder(SavedConversation)


def packed(saved: SavedConversation) -> bytes:
    """A conversation as it is kept in Redis."""
    return _pack(saved)


def unpacked(row: bytes) -> SavedConversation | None:
    """The same again; None for nothing."""
    return _row.decode(row) if row else None


class SharedStore:
    """Where a router meets its replicas. `name` tells this one from the others."""

    def __init__(self, url: str, namespace: str, ttl_s: float, password: str | None = None) -> None:
        self._url = url
        self._password = password
        self.name = os.urandom(8).hex()
        self._prefix = f"{namespace}:"
        self._ttl_ms = int((ttl_s + GRACE_S) * 1000)
        self._secret = os.urandom(SECRET_BYTES)

    def secret(self) -> bytes:
        """The replicas' common secret; blocks. Raises ConfigError if Redis cannot be reached."""
        try:
            with redis.Redis.from_url(
                self._url, password=self._password, socket_timeout=CONNECT_TIMEOUT_S
            ) as server:
                known = server.set(self._prefix + "secret", self._secret, nx=True, get=True)
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise ConfigError(
                f"router.state.redis: Redis does not let this router in: {clause(error)}. Put the"
                " password into an environment variable that router.state.redis_password_env names;"
                " a user goes into the URL, redis://USER@HOST:PORT/0."
            ) from error
        except ValueError:  # which may quote the password
            raise ConfigError(
                "router.state.redis: not a URL like redis://HOST:6379/0, or a password that is not"
                " UTF-8."
            ) from None
        except SharedError as error:
            raise ConfigError(
                f"router.state.redis: Redis cannot be reached: {clause(error)}. Start it, or write"
                " `state: {path: FILE}` for a router without replicas."
            ) from error
        if known:
            self._secret = bytes(known)
        return self._secret

    async def connect(self) -> "Session":
        """Begin to talk. Raises one of SharedError."""
        session = Session(self._url, self._password, self._prefix, self.name, self._ttl_ms)
        try:
            await session.open(self._secret)
        except BaseException:
            await session.close()
            raise
        return session


class Session:
    """Two connections, for calls and for messages, until one of them breaks."""

    def __init__(self, url: str, password: str | None, prefix: str, name: str, ttl_ms: int) -> None:
        # No retries: a message may have been missed, which the caller must know.
        once = Retry(NoBackoff(), 0)
        self._server = Redis.from_url(
            url, password=password, socket_connect_timeout=CONNECT_TIMEOUT_S, retry=once
        )
        self._messages = self._server.pubsub(ignore_subscribe_messages=True)
        self._prefix = prefix
        self._head = (prefix, name, ttl_ms)
        self._name = name
        self._scripts: dict[str, str] = {}

    async def open(self, secret: bytes) -> None:
        """Listen, and see that the secret is the same."""
        server, prefix = self._server, self._prefix
        await self._messages.subscribe(f"{prefix}to:{self._name}", f"{prefix}all")
        known = await server.set(f"{prefix}secret", secret, nx=True, get=True)
        if known not in (None, secret):
            raise redis.RedisError("its replicas share another secret by now; restart this one")
        for name, text in _SCRIPTS.items():
            self._scripts[name] = await server.script_load(text)

    async def exchange(self, calls: Sequence[Call]) -> list[Any]:
        """Have scripts run in this order; their answers."""
        pipe = self._server.pipeline(transaction=False)
        for name, arguments in calls:
            pipe.execute_command("EVALSHA", self._scripts[name], 0, *self._head, *arguments)
        answers = await pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer  # as Redis said it: the library would quote the call, with its texts
        return answers

    async def messages(self) -> AsyncIterator[list[str]]:
        """What the other replicas say, in words, for ever."""
        async for message in self._messages.listen():
            yield message["data"].decode().split(" ")

    async def close(self) -> None:
        """Hang up."""
        await self._messages.aclose()  # type: ignore[no-untyped-call]
        await self._server.aclose()
