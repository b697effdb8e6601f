"""Where `top` gets its numbers: the metrics on the router's control port."""

import time
from collections import deque

from conserve_sglang.core.errors import ConserveError, Unreachable
from conserve_sglang.telemetry.overview import Overview, overview
from conserve_sglang.telemetry.scrape import Scrape, read_scrape

from .control_port import ControlPort

_PATH = "/metrics"

WINDOW_S = 10.0
TIMEOUT_S = 3.0


def _fetch(port: ControlPort) -> bytes:
    """The metrics now. Raises `Unreachable`, saying what to do."""
    try:
        status, data = port.exchange("GET", _PATH, None, TIMEOUT_S)
    except ConserveError as error:
        raise Unreachable(str(error)) from error
    if status != 200:
        hint = _about_the_key(port) if status == 401 else ""
        raise Unreachable(f"{port.url} answered {status}. {hint}".strip())
    return data


def _about_the_key(port: ControlPort) -> str:
    if not port.has_key:
        return "Name the variable with the admin key: --key-env."
    return (
        "The key was not accepted: is it that of router.admin_key_env, and the port"
        " router.control_port, not router.port?"
    )


class Feed:
    """Looks at one router again and again; rates are those of the last `WINDOW_S`."""

    def __init__(self, port: ControlPort) -> None:
        self.url = port.url
        self._port = port
        self._past: deque[Scrape] = deque()

    def once(self, interval_s: float) -> Overview:
        """One overview, with the rates of one interval."""
        self.look()
        time.sleep(interval_s)
        return self.look()

    def look(self) -> Overview:
        """Scrape now. Raises `Unreachable`, saying what to do."""
        scrape = self._scrape()
        past = self._past
        turns = "conserve_router_turns_total"
        if past and (scrape.total(turns) or 0) < (past[-1].total(turns) or 0):
            past.clear()  # the router began anew
        while len(past) > 1 and past[1].at_s <= scrape.at_s - WINDOW_S:
            past.popleft()
        before = past[0] if past else None
        past.append(scrape)
        return overview(before, scrape, time.time())

    def _scrape(self) -> Scrape:
        data = _fetch(self._port)
        try:
            return read_scrape(data.decode(), time.monotonic())
        except ValueError as error:
            raise Unreachable(f"what {self.url} answers are no metrics ({error})") from error
