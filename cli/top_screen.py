"""The live screen of `top`: drawn anew each interval, until q is pressed."""

import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from conserve_sglang.core.errors import ConfigError, Unreachable
from conserve_sglang.telemetry.overview import Overview

from .top_feed import Feed
from .top_view import picture

_LEAVE = ("q", "Q", "\x1b", "\x03", "\x04")


def run_live(feed: Feed, interval_s: float) -> None:
    """Show it until q, Escape or Ctrl-C."""
    console = Console()
    if not (console.is_terminal and sys.stdin.isatty()):
        raise ConfigError("this is no terminal: use --once, or --json for a program")
    seen = feed.look()  # a router that is not there is an error, one that goes away is not
    with _single_keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        trouble: str | None = None
        while True:
            live.update(_frame(seen, feed.url, console, trouble), refresh=True)
            if _is_left(interval_s, seen, feed.url, live, trouble):
                return
            try:
                seen, trouble = feed.look(), None
            except Unreachable as error:
                trouble = f"not of now: {error}"


def _frame(seen: Overview, url: str, console: Console, trouble: str | None) -> Group:
    keys = Text("q ends", style="dim")
    return Group(picture(seen, url, console.width, trouble), Text(), keys)


def _is_left(interval_s: float, seen: Overview, url: str, live: Live, trouble: str | None) -> bool:
    """Wait for the next look, or a key; draw anew when the terminal has another size."""
    until_s = time.monotonic() + interval_s
    size = live.console.size
    while (left_s := until_s - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], min(0.2, left_s))
        if ready and sys.stdin.read(1) in _LEAVE:
            return True
        if live.console.size != size:
            size = live.console.size
            live.update(_frame(seen, url, live.console, trouble), refresh=True)
    return False


@contextmanager
def _single_keys() -> Iterator[None]:
    """Keys are read one by one and not shown; the terminal is put back afterwards."""
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
