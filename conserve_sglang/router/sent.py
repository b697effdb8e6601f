"""What a client has of a streamed answer, as far as another decoder must know to go on with it."""

import re

import msgspec

from conserve_sglang.core.continuation import continuation_rid
from conserve_sglang.router.payload import Endpoint
from conserve_sglang.workers.unreadable import UNREADABLE

_HEAD_BYTES = 1024
_ID = re.compile(rb'"id":"([!#-\[\]-~]+)"')
_CREATED = re.compile(rb'"created":(\d+)')
_EVENT = b"data: {"


class _Meta(msgspec.Struct):
    id: str = ""
    finish_reason: msgspec.Raw = msgspec.Raw(b"null")


class _Generated(msgspec.Struct):
    output_ids: list[int]
    meta_info: _Meta


_generated = msgspec.json.Decoder(_Generated)


class Sent:
    """Kept while a stream runs: of an OpenAI stream the ids its events told and how the first
    event began, of a native one its last event, which holds all ids."""

    __slots__ = ("_first", "_last", "is_native", "num_tokens", "told")

    def __init__(self, endpoint: Endpoint) -> None:
        self.is_native = endpoint is Endpoint.GENERATE
        self.told: list[bytes] = []
        self.num_tokens = 0
        self._first = b""
        self._last = b""

    @property
    def is_begun(self) -> bool:
        """Whether `take` has all it needs for now."""
        return not self.is_native and bool(self._first)

    def take(self, data: bytes) -> None:
        """Whole events are on their way to the client."""
        if self.is_native:
            self._last = data
        elif not self._first:
            self._first = data[:_HEAD_BYTES]

    def is_complete(self) -> bool:
        """Whether only the end of a native stream is missing."""
        last = self._last_native()
        return last is not None and bytes(last.meta_info.finish_reason) != b"null"

    def continuation(self) -> bytes | None:
        """The JSON member that has a decoder go on from here; None if it cannot be told."""
        if self.is_native:
            return self._native()
        answer_id, created = _ID.search(self._first), _CREATED.search(self._first)
        steps = b";".join(filter(None, self.told))
        if answer_id is None or created is None or not steps:
            return None
        self.num_tokens = steps.count(b";") + steps.count(b",") + 1
        rid = continuation_rid(
            answer_id=answer_id[1].decode(),
            created=int(created[1]),
            num_events=len(self.told),
            steps=steps.decode(),
        )
        return _member(rid)

    def _native(self) -> bytes | None:
        last = self._last_native()
        if last is None or not last.output_ids or " " in last.meta_info.id:
            return None
        self.num_tokens = len(last.output_ids)
        steps = ";".join(map(str, last.output_ids))
        rid = continuation_rid(answer_id=last.meta_info.id, created=0, num_events=0, steps=steps)
        return _member(rid)

    def _last_native(self) -> _Generated | None:
        at = self._last.rfind(_EVENT)
        if not self.is_native or at < 0:
            return None
        end = self._last.find(b"\n", at)
        try:
            return _generated.decode(self._last[at + 6 : end if end >= 0 else None])
        except UNREADABLE:
            return None


def _member(rid: str) -> bytes:
    return b'"rid":' + msgspec.json.encode(rid) + b","
