"""Where `top` gets its numbers: the metrics on the router's control port."""

import os
import time
import urllib.error
import urllib.request
from collections import deque

from conserve_sglang.core.errors import ConfigError, Unreachable
from conserve_sglang.telemetry.overview import Overview, overview
from conserve_sglang.telemetry.scrape import Scrape, read_scrape

WINDOW_S = 10.0
TIMEOUT_S = 3.0


def key_from(name: str | None) -> str | None:
    """The admin key in a variable of the environment."""
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise ConfigError(f"--key-env: the variable {name} is not set. Put the admin key in it.")
    return key


class Feed:
    """Looks at one router again and again; rates are those of the last `WINDOW_S`."""

    def __init__(self, url: str, key: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url: {url} is no URL. Say http://HOST:PORT of the control port.")
        self._request = urllib.request.Request(url.rstrip("/") + "/metrics")
        if key is not None:
            self._request.add_header("authorization", f"Bearer {key}")
        self.url = url
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
        try:
            with urllib.request.urlopen(self._request, timeout=TIMEOUT_S) as answer:
                return read_scrape(answer.read().decode(), time.monotonic())
        except urllib.error.HTTPError as error:
            error.close()
            hint = "Name the variable with the admin key: --key-env." if error.code == 401 else ""
            raise Unreachable(f"{self.url} answered {error.code}. {hint}".strip()) from error
        except (OSError, ValueError) as error:
            raise Unreachable(
                f"no metrics from {self.url} ({error}). Is the router up? --url names its control"
                " port (router.control_port in the tier map)."
            ) from error
