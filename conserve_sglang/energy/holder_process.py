"""The process that has GPUs in hand for another, and puts them back whatever becomes of that one.

    python -m conserve_sglang.energy.holder_process

It is started by `holding.Holding` in a session of its own. On stdin comes one line of JSON, what
to hold, then anything at all as heartbeats; on stdout it answers one line, then tells events. The
GPUs are put back when stdin ends, when `lease_s` pass without a heartbeat, and on SIGTERM or
SIGINT. Killed with -9 it leaves its record, which whoever started it replays.

On a Unix socket, open to its own user alone, a controller asks for other limits, for a time: one
line `{"caps": {UUID: watts}, "lease_s": 5, "why": "..."}`, one line back. When that time is over
without another the GPUs go back to what they had at the start. Without caps it only tells.
"""

import json
import os
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from conserve_sglang.core.errors import CapsError, CapsNotPermitted
from conserve_sglang.energy.cap_records import CapRecords
from conserve_sglang.energy.holder import Holder, PutBack
from conserve_sglang.energy.knobs import Knobs
from conserve_sglang.power.caps import Wish

LOOK_INTERVAL_S = 1.0
_MOST_BYTES = 65536
MOST_LEASE_S = 60.0
_TALK_TIMEOUT_S = 2.0
OWNER_ENDED = "its owner has ended"


class HolderProcess:
    """The loop around a `Holder`."""

    def __init__(self, holder: Holder, *, lease_s: float, path: str) -> None:
        self._holder = holder
        self._lease_s = lease_s
        self._path = path
        self._moved_until_s: float | None = None
        self._why_ended: str | None = None
        self._selector = selectors.DefaultSelector()
        self._listener = self._listen()

    def run(self) -> str:
        """Serve until there is a reason to put the GPUs back: that reason."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        os.set_blocking(sys.stdin.fileno(), False)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._on_beat)
        listener = self._listener
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._on_call(listener))
        self._beaten_at_s = time.monotonic()
        look_at_s = 0.0
        try:
            while self._why_ended is None:
                for key, _ in self._selector.select(timeout=0.2):
                    key.data()
                now = time.monotonic()
                if now - self._beaten_at_s > self._lease_s:
                    self._why_ended = f"no heartbeat for {self._lease_s:g} s"
                elif now >= look_at_s:
                    look_at_s = now + LOOK_INTERVAL_S
                    self._look(now)
        finally:
            listener.close()
            with suppress(OSError):
                os.unlink(self._path)
        with suppress(CapsError):
            self._tell_changes()
        return self._why_ended

    # inside

    def _on_signal(self, number: int, frame: object) -> None:
        self._why_ended = signal.Signals(number).name

    def _on_beat(self) -> None:
        try:
            got = os.read(sys.stdin.fileno(), _MOST_BYTES)
        except BlockingIOError:
            return
        self._beaten_at_s = time.monotonic()
        if not got:
            self._why_ended = OWNER_ENDED

    def _look(self, now: float) -> None:
        try:
            self._tell_changes()
            if self._moved_until_s is not None and now > self._moved_until_s:
                self._moved_until_s = None
                self._holder.rest("the controller's lease is over")
                tell(event="rested", message="the power controller is silent: limits as at start")
        except CapsError as error:
            tell(event="failed", message=str(error))

    def _tell_changes(self) -> None:
        for line in self._holder.look():
            tell(event="foreign_change", message=line)

    def _listen(self) -> socket.socket:
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(self._path)
        finally:
            os.umask(before)
        listener.listen(8)
        return listener

    def _on_call(self, listener: socket.socket) -> None:
        """One line, one answer; a caller that dawdles is hung up on, for beats must be heard."""
        caller, _ = listener.accept()
        with caller, suppress(OSError):
            caller.settimeout(_TALK_TIMEOUT_S)
            line = b""
            while not line.endswith(b"\n") and len(line) < _MOST_BYTES:
                more = caller.recv(_MOST_BYTES)
                if not more:
                    break
                line += more
            caller.sendall(json.dumps(self._answer(line)).encode() + b"\n")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(line)
            caps = {str(uuid): float(watts) for uuid, watts in asked.get("caps", {}).items()}
            lease_s, why = float(asked.get("lease_s", 5.0)), str(asked.get("why", ""))
            if not 0 < lease_s <= MOST_LEASE_S:
                raise ValueError(
                    f"lease_s is {lease_s:g}: it must be more than 0, at most {MOST_LEASE_S:g}"
                )
        except (ValueError, TypeError, AttributeError) as error:
            return {"error": f"not a request: {error}", "gpus": self._told()}
        try:
            if caps:
                self._moved_until_s = time.monotonic() + lease_s
                self._holder.move(caps, why)
            return {"gpus": self._told()}
        except CapsError as error:
            return {"error": str(error), "gpus": self._told()}

    def _told(self) -> dict[str, Any]:
        return told(self._holder)


def told(holder: Holder) -> dict[str, Any]:
    """Each GPU in hand, as JSON tells it."""
    return {
        uuid: {
            "index": held.found.index,
            "name": held.found.name,
            "tiers": list(held.tiers),
            "cap_w": held.now_w,
            "base_w": held.base_w,
            "least_w": held.found.least_w,
            "found_w": held.found.cap_w,
            "is_foreign": held.is_foreign,
        }
        for uuid, held in holder.gpus.items()
    }


def tell(**what: Any) -> None:
    """One line to whoever started this; if it has gone there is nobody to tell."""
    with suppress(OSError):
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


def wish_of(values: dict[str, Any]) -> Wish:
    """A wish that came as JSON."""
    fixed = {"tiers": tuple(values["tiers"]), "problems": tuple(values["problems"])}
    return Wish(**{**values, **fixed})


def main() -> int:
    """Hold what stdin asks for; 3 if that is refused, 1 if something could not be put back."""
    asked = json.loads(sys.stdin.readline())
    try:
        holder = Holder(Knobs(), CapRecords())
        changes = holder.take(
            [wish_of(values) for values in asked["wishes"]], allow_raise=asked["allow_raise"]
        )
    except CapsError as error:
        tell(error=str(error), is_permitted=not isinstance(error, CapsNotPermitted))
        return 3
    changed = [str(change) for change in changes]
    try:
        process = HolderProcess(holder, lease_s=asked["lease_s"], path=asked["socket"])
        tell(held=told(holder), changed=changed, notices=list(holder.notices))
        why = process.run()
    finally:
        done: list[PutBack] = holder.restore()
    tell(
        event="put_back",
        why=why,
        gpus=[[each.uuid, each.index, each.is_restored, each.message] for each in done],
    )
    return 0 if all(each.is_restored for each in done) else 1


if __name__ == "__main__":
    sys.exit(main())
