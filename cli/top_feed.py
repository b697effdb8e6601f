"""Where `top` gets its numbers: the metrics on the router's control port."""

import os
import time
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path
from typing import Protocol

from conserve_sglang.core.errors import ConfigError, ConserveError, Unreachable
from conserve_sglang.telemetry.overview import Overview, overview
from conserve_sglang.telemetry.scrape import Scrape, read_scrape
from conserve_sglang.tiermap import load_tier_map

from .control_port import ControlPort

_PATH = "/metrics"

WINDOW_S = 10.0
TIMEOUT_S = 3.0


class Source(Protocol):
    """Who fetches the metrics."""

    url: str

    def fetch(self) -> bytes:
        """The metrics now. Raises `Unreachable`, saying what to do."""
        ...


def from_url(url: str, key_env: str | None) -> Source:
    """The control port at a URL, with the key in a variable; https is checked as browsers do."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url: {url} is no URL. Say http://HOST:PORT of the control port.")
    return _AtUrl(url, _key_in(key_env))


def from_tier_map(file: Path) -> Source:
    """The control port of a tier map's router, with its key, and its certificate alone."""
    return _OfTierMap(ControlPort(load_tier_map(file).router))


def _key_in(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise ConfigError(f"--key-env: the variable {name} is not set. Put the admin key in it.")
    return key


class _AtUrl:
    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self._request = urllib.request.Request(url.rstrip("/") + _PATH)
        if key is not None:
            self._request.add_header("authorization", f"Bearer {key}")

    def fetch(self) -> bytes:
        try:
            with urllib.request.urlopen(self._request, timeout=TIMEOUT_S) as answer:
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            error.close()
            hint = "Name the variable with the admin key: --key-env." if error.code == 401 else ""
            raise Unreachable(f"{self.url} answered {error.code}. {hint}".strip()) from error
        except OSError as error:
            raise Unreachable(
                f"no metrics from {self.url} ({error}). Is the router up? --url names its control"
                " port (router.control_port in the tier map), --tier-map one with TLS."
            ) from error


class _OfTierMap:
    def __init__(self, port: ControlPort) -> None:
        self.url = port.url
        self._port = port

    def fetch(self) -> bytes:
        try:
            status, data = self._port.exchange("GET", _PATH, None, TIMEOUT_S)
        except ConserveError as error:
            raise Unreachable(str(error)) from error
        if status != 200:
            raise Unreachable(f"{self.url} answered {status}. Is the admin key the router's?")
        return data


class Feed:
    """Looks at one router again and again; rates are those of the last `WINDOW_S`."""

    def __init__(self, source: Source) -> None:
        self.url = source.url
        self._source = source
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
        data = self._source.fetch()
        try:
            return read_scrape(data.decode(), time.monotonic())
        except ValueError as error:
            raise Unreachable(f"what {self.url} answers are no metrics ({error})") from error
