"""Starts a holder process, keeps its lease, and hears from it. See `holder_process`."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from conserve_sglang.core.errors import CapsError, CapsNotPermitted
from conserve_sglang.energy.cap_records import CapRecords
from conserve_sglang.energy.holder import restore_all
from conserve_sglang.energy.holder_process import OWNER_ENDED
from conserve_sglang.energy.knobs import Knobs
from conserve_sglang.power.caps import Wish

SOCKET_VARIABLE = "CONSERVE_CAPS_SOCKET"
KEY_VARIABLE = "CONSERVE_CAPS_KEY"
"""A launch's own key, for its agent and its router: whoever has it may move caps."""
LEASE_S = 10.0
BEAT_S = 2.0
_END_TIMEOUT_S = 20.0


class Holding:
    """GPUs held by another process as long as this one lives and beats.

    `tell` gets a line for whatever happens; it is called from a thread of this object's own.
    Raises `CapsError` where the caps are refused; nothing is set then.
    """

    def __init__(
        self,
        asked: Sequence[Wish],
        tell: Callable[[str], None],
        *,
        allow_raise: bool = False,
        lease_s: float = LEASE_S,
    ) -> None:
        self._tell = tell
        self._is_closing = threading.Event()
        records = CapRecords()
        self.socket_path = str(records.folder / f"holder-{os.getpid()}.sock")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "conserve_sglang.energy.holder_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C at the terminal is for us: it ends when we do
        )
        self._send(
            json.dumps(
                {
                    "wishes": [asdict(wish) for wish in asked],
                    "allow_raise": allow_raise,
                    "lease_s": lease_s,
                    "socket": self.socket_path,
                }
            )
        )
        answer = self._hear()
        if answer is None or "held" not in answer:
            self._process.communicate()
            self._raise(answer)
        assert answer is not None
        self.gpus: dict[str, Any] = answer["held"]
        self.changed: list[str] = answer["changed"]
        self.notices: list[str] = answer["notices"]
        self.was_put_back = False
        self._beating = threading.Thread(target=self._beat, name="caps-beat", daemon=True)
        self._hearing = threading.Thread(target=self._hear_all, name="caps-events", daemon=True)
        self._beating.start()
        self._hearing.start()

    @property
    def pid(self) -> int:
        """The holder's process id."""
        return self._process.pid

    def close(self) -> None:
        """Have everything put back, and wait for it. What the holder could not do is tried here."""
        if self._is_closing.is_set():
            return
        self._is_closing.set()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._beating.join(BEAT_S)
        self._hearing.join(BEAT_S)

    # inside

    def _raise(self, answer: dict[str, Any] | None) -> None:
        if answer is None:
            raise CapsError("the process that sets power caps ended without a word; see its error")
        error = str(answer["error"])
        raise CapsError(error) if answer["is_permitted"] else CapsNotPermitted(error)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _hear(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def _beat(self) -> None:
        while not self._is_closing.wait(BEAT_S):
            self._send("")

    def _hear_all(self) -> None:
        while (heard := self._hear()) is not None:
            if heard.get("event") != "put_back":
                self._tell(f"power caps: {heard['message']}")
                continue
            self.was_put_back = True
            if heard["why"] != OWNER_ENDED:
                self._tell(f"power caps: {heard['why']}: all GPUs are put back")
            for _, index, _, message in heard["gpus"]:
                self._tell(f"power caps: GPU {index}: {message}")
        if not self.was_put_back:
            self._replay()

    def _replay(self) -> None:
        """The holder was killed: do what it can no more do."""
        try:
            mine = set(self.gpus)
            self._tell("power caps: the process that held them was killed; putting GPUs back")
            done = restore_all(Knobs(), CapRecords(), only=mine)
        except CapsError as error:
            self._tell(f"power caps: {error}; run conserve-sglang doctor --restore")
            return
        for each in done:
            self._tell(f"power caps: GPU {each.index}: {each.message}")
