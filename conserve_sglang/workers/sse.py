"""Server-sent events, read no more than needed: token counts at the tail, a usage event held back.

Body bytes pass through as they are. Only an event that might be the extra usage event is looked
into, and only when the router itself asked for it; the lines that tell token ids are cut out.
"""

from conserve_sglang.core.continuation import MARK
from conserve_sglang.workers.usage import Usage, may_hold_usage, usage_alone

_MAX_HELD_BYTES = 16 * 1024
_MAX_HELD_TOLD_BYTES = 1024 * 1024
_SHORT_BYTES = 4096  # of one event, at most
_TOLD = MARK[1:]
_WITHOUT_USAGE = b'"usage":null}'  # how an event as SGLang writes it ends, which so has no counts


class UsageFilter:
    """Takes the usage event out of a stream whose client did not ask for one, and the lines that
    tell token ids out of any stream; those go to `told`, one for each event.

    Events may be split anywhere over the pieces fed; an unfinished event is held until it is
    whole, which costs its reader nothing, unless it is too long to be looked at.
    """

    __slots__ = (
        "_held",
        "_hides_usage",
        "_max_held_bytes",
        "_told",
        "before_usage",
        "is_passing",
        "usage",
    )

    def __init__(self, told: list[bytes] | None = None, *, hides_usage: bool = True) -> None:
        self._told = told
        self._hides_usage = hides_usage
        self._max_held_bytes = _MAX_HELD_BYTES if told is None else _MAX_HELD_TOLD_BYTES
        self._held = b""
        self.is_passing = False  # inside an event too long to hold
        self.usage: Usage | None = None
        self.before_usage = b""  # the piece that the usage event came in, or came after

    def feed(self, data: bytes) -> bytes:
        """The part of `data` (and of what was held) that goes on to the client."""
        told = self._told
        if told is not None and len(data) <= _SHORT_BYTES and not (self._held or self.is_passing):
            lines = data.split(b"\n", 4)
            if len(lines) == 4 and lines[1].startswith(_TOLD) and not (lines[2] or lines[3]):
                event = lines[0]  # one event and what it tells, as nearly always
                told.append(lines[1][2:])
                data = event + b"\n\n"
                if not self._hides_usage:
                    return data
                if event.endswith(_WITHOUT_USAGE) and self.usage is None:
                    self.before_usage = data
                    return data
                return self._showing(data)
        return self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        if self.is_passing:
            end = data.find(b"\n\n")
            if end < 0:
                return data
            self.is_passing = False
            return data[: end + 2] + self._feed(data[end + 2 :])
        if self._held or not data.endswith(b"\n\n"):
            data = self._whole_events(data)
        if self._told is not None and data.rfind(MARK) >= 0:
            data = _without_marks(data, self._told)
        return self._showing(data) if self._hides_usage else data

    def _showing(self, data: bytes) -> bytes:
        """What the client is to see of whole events, without the usage it did not ask for."""
        if may_hold_usage(data):
            self.before_usage += data
            return self._without_usage(data)
        if data and self.usage is None:
            self.before_usage = data
        return data

    def flush(self) -> bytes:
        """What is still held when the stream ends."""
        held = self._held
        self._held = b""
        return held

    def _whole_events(self, data: bytes) -> bytes:
        """What is whole of what was held and came; the rest is held, unless it is too long."""
        data = self._held + data
        self._held = b""
        if data.endswith(b"\n\n"):
            return data
        end = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
        if len(data) - end <= self._max_held_bytes:
            self._held = data[end:]
            return data[:end]
        self.is_passing = True
        self._stop_taking()
        return data

    def _stop_taking(self) -> None:
        """An event too long to hold goes by with what it tells: what was told is of no use now."""
        if self._told is not None:
            self._told.clear()
            self._told = None

    def _without_usage(self, data: bytes) -> bytes:
        events = data.split(b"\n\n")
        return b"\n\n".join(event for event in events if not self._is_usage(event))

    def _is_usage(self, event: bytes) -> bool:
        usage = usage_alone(event)
        if usage is None:
            return False
        self.usage = usage
        return True


def _without_marks(data: bytes, told: list[bytes]) -> bytes:
    """Several events without the lines that tell ids, which go to `told`."""
    event, *marked = data.split(MARK)
    kept = [event]
    for piece in marked:
        mark, newline, rest = piece.partition(b"\n")
        told.append(mark)
        kept.append(newline + rest)
    return b"".join(kept)
