"""A short run of the fuzzer; the long one is `python -m bench.fuzz`."""

import pytest

from bench.fuzz.live import fuzz_live
from bench.fuzz.mutate import Mutator
from bench.fuzz.run import fuzz
from bench.fuzz.seeds import PIECES, REQUESTS
from bench.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_crashes_or_hangs(target: str) -> None:
    findings = fuzz(target, 5_000, seed=2)
    assert not findings.failures
    # Not everything is refused at the first look: much of it gets to what is behind.
    refused = sum(n for how, n in findings.outcomes.items() if how.startswith("refused"))
    assert len(findings.outcomes) > 1
    assert refused < 0.8 * findings.num_inputs


async def test_router_survives_and_holds_nothing() -> None:
    live = await fuzz_live(500, seed=2)
    assert live["outcomes"]["200"] > 10
    assert live["outcomes"]["400"] > 100


def test_inputs_are_repeatable() -> None:
    first, again = (Mutator(REQUESTS, PIECES, 3) for _ in range(2))
    assert [first.next() for _ in range(50)] == [again.next() for _ in range(50)]


def test_failure_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> str:
        raise KeyError("a fault")

    monkeypatch.setitem(TARGETS, "faulty", (read, REQUESTS))
    findings = fuzz("faulty", 10, seed=1)
    assert findings.num_failures == 10
    assert "a fault" in findings.failures[0]["why"]
