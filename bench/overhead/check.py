"""Before anything is timed: is every answer whole, and from the worker it should come from?"""

import http.client
import json
from collections.abc import Sequence
from typing import Any

from bench.native.programs import PLACE
from bench.overhead.candidates import API_KEY, Candidate, Ports, Running
from bench.overhead.placing import check_placing
from conserve_sglang.core.errors import ConfigError

NUM_TURNS = 8


def check(running: Running, ports: Ports, bodies: Sequence[str]) -> dict[str, int]:
    """Send a few turns one by one; what the workers saw. Raises ConfigError if it is not right."""
    if running.candidate.places:
        check_placing(running.candidate, running.port, ports, NUM_TURNS)
        return {}
    before = _counts(ports)
    num_sent = 0
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    for number in range(NUM_TURNS):
        for body in bodies:
            num_sent += 1
            _turn(connection, running.candidate, body, f"{number:016x}", ports)
    connection.close()
    after = _counts(ports)
    seen = {key: after[key] - before[key] for key in after}
    expected = _expected(running.candidate, num_sent, len(bodies))
    wrong = {key: (seen[key], count) for key, count in expected.items() if seen[key] != count}
    if wrong:
        raise ConfigError(f"{running.candidate.name}: (seen, expected) turns: {wrong}")
    return seen


def _turn(
    connection: http.client.HTTPConnection,
    candidate: Candidate,
    template: str,
    mark: str,
    ports: Ports,
) -> None:
    body = template.replace(PLACE, mark)
    headers = {"content-type": "application/json", "authorization": f"Bearer {API_KEY.decode()}"}
    if candidate.header:
        name, value = candidate.header.split(": ")
        # One conversation for each size of body, since a growing one would move again.
        per_name = candidate.turns_per_name or NUM_TURNS
        label = f"{len(body):08x}{int(mark, 16) // per_name:08x}"
        headers[name] = value.replace(PLACE, label)
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    raw = response.read()
    where = f"{candidate.name}: status {response.status}"
    try:
        answer = json.loads(raw)
        said = answer["choices"][0]["message"]["content"]
        prompt_tokens = answer["usage"]["prompt_tokens"]
    except (ValueError, LookupError) as error:
        raise ConfigError(f"{where}: not a whole answer: {raw[:300]!r}") from error
    by = int(said.split()[4])
    if by not in ports.decode or not said.endswith(f"to {mark}."):
        raise ConfigError(f"{where}: {said!r} is not a decoder's answer to turn {mark}")
    # A router may write the JSON anew without its spaces; nothing else may get lost.
    if prompt_tokens < len(json.dumps(json.loads(body), separators=(",", ":"))) // 4:
        raise ConfigError(f"{where}: the worker read only {prompt_tokens} tokens")


def _expected(candidate: Candidate, num_sent: int, num_bodies: int) -> dict[str, int]:
    if candidate.policy is None and candidate.rival is None:
        width = max(1, candidate.relay_width)
        return {"prefilled": 0, "paired": 0, "local": width * num_sent, "marked": width * num_sent}
    num_paired = num_bodies * -(-NUM_TURNS // (candidate.turns_per_name or NUM_TURNS))
    return {
        "prefilled": num_paired,
        "paired": num_paired,
        "local": num_sent - num_paired,
        "marked": num_sent + num_paired,
    }


def _counts(ports: Ports) -> dict[str, int]:
    """Turns so far: at prefillers, paired and local at decoders, and those that came whole."""
    prefillers = [_counts_of(port) for port in ports.prefill]
    decoders = [_counts_of(port) for port in ports.decode]
    return {
        "prefilled": sum(worker["paired"] for worker in prefillers),
        "paired": sum(worker["paired"] for worker in decoders),
        "local": sum(worker["local"] for worker in decoders + prefillers),
        "marked": sum(worker["marked"] for worker in decoders + prefillers),
    }


def _counts_of(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/counts")
    counts: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return counts
