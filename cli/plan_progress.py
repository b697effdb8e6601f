"""What a plan is doing, on the error output: a spinner on a terminal, else a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

EVERY_S = 5.0

Told = Callable[[str], None]


@contextmanager
def progress() -> Iterator[Told]:
    """Takes what is being done now. Where nobody sees a spinner, a line tells it every `EVERY_S`
    seconds; what takes less says nothing."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("planning", total=None)
            yield lambda words: bar.update(task, description=words)
        return
    lines = _Lines(sys.stderr, EVERY_S)
    try:
        yield lines.told
    finally:
        lines.close()


class _Lines:
    """Writes what was told last, from a thread of its own: a simulation may take long."""

    def __init__(self, stream: TextIO, every_s: float) -> None:
        self._stream, self._every_s = stream, every_s
        self._words, self._began_s = "planning", time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def told(self, words: str) -> None:
        """This is being done now."""
        self._words = words

    def close(self) -> None:
        """No further line."""
        self._ended.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._ended.wait(self._every_s):
            print(
                f"{time.monotonic() - self._began_s:.0f} s: {self._words}",
                file=self._stream,
                flush=True,
            )
