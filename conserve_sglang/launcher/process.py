"""One child process with its log, held by a keeper so that nothing of it can outlive us."""

import asyncio
import os
import signal
import sys
from collections import deque
from pathlib import Path

from conserve_sglang.core.errors import LaunchError
from conserve_sglang.launcher import keeper
from conserve_sglang.launcher.plan import ProcessSpec, command_line
from conserve_sglang.launcher.private import PrivateFlags

_AFTER_GRACE_S = 12.0  # the keeper's own time to kill a tree, and a little


class Lifeline:
    """A pipe that closes when this process ends, however it ends; keepers watch it."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()

    def cut(self) -> None:
        """Close it: every keeper kills its tree now."""
        if self._write_fd >= 0:
            os.close(self._write_fd)
            os.close(self.read_fd)
            self._write_fd = -1


class Child:
    """A running process of a spec. `start` it once; then `wait` for it or `stop` it."""

    def __init__(
        self,
        spec: ProcessSpec,
        log: Path,
        process: asyncio.subprocess.Process,
        private: PrivateFlags,
    ) -> None:
        self.spec = spec
        self.log = log
        self._process = process
        self._private = private

    @classmethod
    async def start(
        cls, spec: ProcessSpec, *, log: Path, lifeline: Lifeline, grace_s: float
    ) -> "Child":
        """Start it in a session of its own, its output appended to `log`."""
        times = f"{grace_s}:{spec.last_words_s}"
        hold = [sys.executable, "-I", "-S", keeper.__file__, str(lifeline.read_fd), times]
        inherited = {name: value for name, value in os.environ.items() if name not in spec.withheld}
        private = PrivateFlags(spec.secret_flags)
        try:
            with log.open("ab") as output:
                output.write(f"--- {command_line(spec)}\n".encode())
                output.flush()
                process = await asyncio.create_subprocess_exec(
                    *hold,
                    *spec.argv,
                    *private.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**inherited, **spec.env},
                    start_new_session=True,
                    pass_fds=(lifeline.read_fd,),
                )
        except OSError as error:
            private.forget()
            raise LaunchError(f"{spec.name}: cannot start it: {error}") from error
        return cls(spec, log, process, private)

    def has_started(self) -> None:
        """It has read its flags: what was told in private is removed."""
        self._private.forget()

    @property
    def pid(self) -> int:
        """The keeper's process id, which is also its group's and session's."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until the whole tree is gone; the exit code, or 128 + the signal."""
        code = await self._process.wait()
        self._private.forget()
        # Only does something when the keeper itself was killed and left its group behind.
        self._signal_group(signal.SIGKILL)
        return 128 - code if code < 0 else code

    async def stop(self, *, grace_s: float) -> None:
        """Ask it to end, make it end after `grace_s`, and return when it has."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.wait(), grace_s + _AFTER_GRACE_S)
        except asyncio.TimeoutError:
            self._signal_group(signal.SIGKILL)
            await self._process.wait()

    def hurry(self) -> None:
        """Kill the tree at once (a keeper that is asked twice does)."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._process.send_signal(number)
        except ProcessLookupError:
            return

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return


def last_lines(log: Path, count: int) -> tuple[str, ...]:
    """The last lines of a log, read from its end."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(deque((line for line in text.splitlines() if line.strip()), maxlen=count))
