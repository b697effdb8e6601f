"""Reads a worker's phase log as it grows, across its files and the worker's lives."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from conserve_sglang.core.phase_log import Entry, Opened, decode_line

logger = logging.getLogger(__name__)

READ_BYTES = 4 * 1024 * 1024


class PhaseTail:
    """One worker's log. It begins with what is in the file when it is first looked at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._inode = 0
        self._rest = b""
        self._last: Opened | None = None
        self.num_lost_files = 0
        self.num_damaged_lines = 0

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def entries(self) -> Iterator[Entry]:
        """What was written since; nothing while there is no file."""
        while True:
            if self._fd < 0 and not self._open():
                return
            yield from self._read()
            # What is renamed gets no more lines: read its end, then go on with the new one.
            if not self._is_renamed():
                return
            yield from self._read()
            self.close()

    def _open(self) -> bool:
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._inode = os.fstat(self._fd).st_ino
        self._rest = b""
        return True

    def _is_renamed(self) -> bool:
        try:
            return os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            return False  # between the renaming and the new file

    def _read(self) -> Iterator[Entry]:
        while data := os.read(self._fd, READ_BYTES):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                try:
                    entry = decode_line(line)
                except ValueError as error:
                    self._damaged(error)
                    continue
                if isinstance(entry, Opened):
                    self._opened(entry)
                if entry is not None:
                    yield entry

    def _opened(self, entry: Opened) -> None:
        last = self._last
        if last is not None and last.pid == entry.pid:
            self.num_lost_files += max(0, entry.number - last.number - 1)
        self._last = entry

    def _damaged(self, error: ValueError) -> None:
        if not self.num_damaged_lines:
            logger.error("%s: %s", self._path, error)
        self.num_damaged_lines += 1
