"""Turns that a client would send to its workers by itself: what it asks the router, and whether the
answers are right. The turns themselves are not sent."""

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.native.programs import TURN_PLACE
from bench.overhead.candidates import API_KEY, Candidate, Ports
from conserve_sglang.core.errors import ConfigError

PATH = "/v1/place"
REPORT_PATH = "/v1/place/report"
INPUT_TOKENS, OUTPUT_TOKENS = 256, 10
_DONE = {
    "turn": TURN_PLACE,
    "event": "done",
    "prompt_tokens": INPUT_TOKENS,
    "output_tokens": OUTPUT_TOKENS,
    "cached_tokens": INPUT_TOKENS - 1,
}
_ASK = {"input_tokens": INPUT_TOKENS, "endpoint": "chat"}


def bodies(candidate: Candidate, folder: Path) -> tuple[Path, tuple[str, Path] | None]:
    """What is asked for each turn, and what is reported after it, as files."""
    with_report = candidate.places == "with_report"
    ask, done = folder / f"{candidate.name}.json", folder / "done.json"
    ask.write_text(json.dumps(_ASK | ({"last": _DONE} if with_report else {})))
    done.write_text(json.dumps(_DONE))
    return ask, None if with_report else (REPORT_PATH, done)


def check_placing(candidate: Candidate, port: int, ports: Ports, num_turns: int) -> None:
    """Place turns of one conversation one by one. Raises ConfigError if one comes out wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    last: dict[str, Any] | None = None
    for number in range(num_turns):
        body = _ASK | ({} if last is None else {"last": last})
        place = _ask(connection, candidate, PATH, body)
        decoder = int(place["decoder"]["url"].rpartition(":")[2])
        is_right = decoder in ports.decode and (place["prefiller"] is None) == (number > 0)
        if not is_right or place.get("last_known", True) is not True:
            raise ConfigError(f"{candidate.name}: turn {number + 1} was placed as {place}")
        done = _DONE | {"turn": place["turn"]}
        last = done if candidate.places == "with_report" else None
        if last is None:
            _ask(connection, candidate, REPORT_PATH, done)
    connection.close()


def _ask(
    connection: http.client.HTTPConnection,
    candidate: Candidate,
    path: str,
    body: Mapping[str, Any],
) -> dict[str, Any]:
    headers = {
        "authorization": f"Bearer {API_KEY.decode()}",
        "x-conversation-id": f"check-{candidate.name}",
    }
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    raw = response.read()
    if response.status != 200:
        raise ConfigError(f"{candidate.name}: {path}: status {response.status}: {raw[:300]!r}")
    told: dict[str, Any] = json.loads(raw)
    return told
