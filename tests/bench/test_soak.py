"""A minute of the soak, and that it would see what it looks for."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from bench.soak.__main__ import Rest, problems, soak
from bench.soak.clients import Tally

REST = Rest(
    rss_mib=40.0, open_files=30, worker_connections=0, turns=10, held_tokens=0, conversations=0
)


def tally(**outcomes: int) -> Tally:
    return Tally(Counter({name.replace("_", " "): count for name, count in outcomes.items()}))


def test_what_must_not_be_is_seen() -> None:
    good = tally(answered=8, left=1, told_why_not=1)
    assert not problems(good, REST, REST)
    assert problems(tally(answered=9, answered_wrongly=1), REST, REST)
    assert problems(tally(answered=9, cut_off=1), REST, REST)
    assert problems(tally(answered=9), REST, REST)
    for bad in (
        replace(REST, held_tokens=1),
        replace(REST, conversations=1),
        replace(REST, rss_mib=80.0),
        replace(REST, open_files=50),
        replace(REST, worker_connections=11),
    ):
        assert problems(good, REST, bad)


async def test_minute_of_traffic_and_faults_loses_nothing(tmp_path: Path) -> None:
    record = await soak(tmp_path, 60.0, seed=3)
    assert not record["problems"], record
    assert record["outcomes"]["answered"] > 1000
    assert sum(record["faults"].values()) > 5
    refused = record["outcomes"].get("told why not", 0)
    assert refused <= 0.01 * record["outcomes"]["answered"], record["told"]
