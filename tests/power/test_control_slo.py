"""What the law does for an SLO: whose cap is blamed, who pays, and on what evidence it acts."""

from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from conserve_sglang.core.worker import Role
from conserve_sglang.power.control import ControlSettings, PowerController
from conserve_sglang.power.latency_window import recent_latency
from conserve_sglang.power.observation import (
    AdmissionMove,
    CapMove,
    Latency,
    Observation,
    Reason,
    TierReading,
)

BROKEN, FINE = 10.0, 0.1  # shares of an SLO


def tier(name: str, role: Role, cap_w: float, num_gpus: int = 1, **fields: Any) -> TierReading:
    """At its cap, unless `watts` says otherwise."""
    watts = fields.pop("watts", cap_w * num_gpus)
    return TierReading(
        tier=name, role=role, num_gpus=num_gpus, watts=watts, cap_w=cap_w, base_w=300.0,
        least_w=100.0, **fields,
    )  # fmt: skip


def law(**fields: float) -> PowerController:
    settings = {"power_budget_w": 900.0, "ttfet_slo_s": 8.0, "tbt_slo_s": 0.1, **fields}
    return PowerController(ControlSettings(**settings))  # type: ignore[arg-type]


def seen(
    at_s: float, *tiers: TierReading, ttfet: float = FINE, tbt: float = FINE, other_w: float = 0.0
) -> Observation:
    return Observation(
        at_s=at_s, measured_at_s=at_s, tiers=tiers, other_w=other_w, num_running=50,
        ttfet=Latency(p95_s=8.0 * ttfet, num_samples=50, since_s=at_s - 1),
        tbt=Latency(p95_s=0.1 * tbt, num_samples=50, since_s=at_s - 1),
    )  # fmt: skip


def moved(controller: PowerController, observation: Observation) -> dict[str, float]:
    moves = controller.handle(observation)
    assert not [move for move in moves if isinstance(move, AdmissionMove)]
    return {move.tier: move.after_w for move in moves if isinstance(move, CapMove)}


def test_one_gpu_at_its_cap_is_enough_to_blame_it() -> None:
    decode = tier("d", Role.DECODE, 150.0, 3, watts=310.0, most_w=150.0)
    prefill = tier("p", Role.PREFILL, 300.0, watts=90.0)
    assert moved(law(), seen(1.0, decode, prefill, tbt=BROKEN, other_w=110.0)) == {"d": 175.0}
    alike = replace(decode, most_w=None)
    assert moved(law(), seen(1.0, alike, prefill, tbt=BROKEN, other_w=110.0)) == {}


def test_decode_is_blamed_for_a_ttfet_too_and_gets_what_room_there_is() -> None:
    decode, prefill = tier("d", Role.DECODE, 150.0, 3), tier("p", Role.PREFILL, 300.0)
    assert moved(law(), seen(1.0, decode, prefill, ttfet=BROKEN, other_w=50.0)) == {"d": 171.0}


def test_prefill_comes_first_for_a_ttfet_and_decode_pays_while_its_tbt_is_met() -> None:
    decode, prefill = tier("d", Role.DECODE, 220.0, 3), tier("p", Role.PREFILL, 200.0)
    ask = seen(1.0, decode, prefill, ttfet=BROKEN)
    assert moved(law(), ask) == {"p": 225.0, "d": 213.0}
    assert moved(law(), replace(ask, tbt=Latency(p95_s=0.09, num_samples=50))) == {"p": 204.0}


def test_a_mixed_tier_is_blamed_for_both() -> None:
    mixed = tier("m", Role.MIXED, 150.0, 3)
    for broken in ({"ttfet": BROKEN}, {"tbt": BROKEN}):
        controller = law()
        assert moved(controller, seen(1.0, mixed, other_w=300.0, **broken)) == {"m": 175.0}
        raised = tier("m", Role.MIXED, 175.0, 3)
        assert moved(controller, seen(2.0, raised, other_w=300.0, **broken)) == {"m": 188.0}


def test_a_ttfet_that_no_cap_can_mend_makes_no_turn_wait() -> None:
    decode, prefill = tier("d", Role.DECODE, 188.0, 3), tier("p", Role.PREFILL, 300.0)
    controller = law()
    for second in range(1, 100):
        assert moved(controller, seen(float(second), decode, prefill, ttfet=BROKEN)) == {}


def test_the_same_reading_moves_nothing_twice() -> None:
    """Told again until it is stale: no cap goes further down, and then all come back."""
    decode, prefill = tier("d", Role.DECODE, 290.0, 3), tier("p", Role.PREFILL, 300.0)
    controller = law()
    first = seen(10.0, decode, prefill)
    assert moved(controller, first) == {"d": 188.0}
    capped = (replace(decode, cap_w=188.0), prefill)  # the watts are still those of before
    for age_s in (1.0, 2.0, 3.0):
        again = replace(first, at_s=10.0 + age_s, tiers=capped)
        assert moved(controller, again) == {}
    stale = controller.handle(replace(first, at_s=13.1, tiers=capped))
    assert [(move.reason, move.after_w) for move in stale if isinstance(move, CapMove)] == [
        (Reason.STALE, 300.0)
    ]


def test_a_reading_from_before_the_move_is_no_sign_of_disobedience() -> None:
    decode, prefill = tier("d", Role.DECODE, 290.0, 3), tier("p", Role.PREFILL, 300.0)
    controller = law()
    assert moved(controller, seen(10.0, decode, prefill)) == {"d": 188.0}
    late = (replace(decode, cap_w=188.0), prefill)
    for n in range(1, 10):  # each newer than the last, and all of before
        again = replace(seen(10.0 + n / 10, *late), measured_at_s=9.0 + n / 10)
        assert moved(controller, replace(again, measured_at_s=10.0 - 1 / (n + 1))) == {}


def test_latencies_of_before_a_move_are_not_acted_on_again() -> None:
    decode, prefill = tier("d", Role.DECODE, 188.0, 3), tier("p", Role.PREFILL, 300.0)
    controller = law()
    assert moved(controller, seen(1.0, decode, prefill, tbt=BROKEN)) == {"d": 213.0, "p": 225.0}
    after = (tier("d", Role.DECODE, 213.0, 3), tier("p", Role.PREFILL, 225.0))
    for second in range(2, 31):
        old = seen(float(second), *after, tbt=BROKEN)
        old = replace(old, tbt=replace(old.tbt, since_s=-28.0))  # type: ignore[type-var]
        assert moved(controller, old) == {}
    assert moved(controller, seen(31.0, *after, tbt=BROKEN))["d"] == 238.0


class Served:
    """Turns that end each tenth of a second, and say then what the caps were on their way."""

    def __init__(self, turn_s: float, conversation_s: float) -> None:
        self.turn_s, self.conversation_s = turn_s, conversation_s
        self.caps: dict[str, float] = {"d": 300.0, "p": 300.0}
        self.past: list[tuple[float, bool, bool]] = []  # is decode, is prefill too slow
        self.tbt: deque[tuple[float, float, float]] = deque(maxlen=512)
        self.ttfet: deque[tuple[float, float, float]] = deque(maxlen=512)

    def serve(self, at_s: float, breaks: dict[str, float]) -> None:
        slow = [self.caps[name] < breaks[name] for name in ("d", "p")]
        self.past.append((at_s, slow[0], slow[1]))
        for samples, length_s, which, fast_s, slow_s in (
            (self.tbt, self.turn_s, 1, 0.05, 0.2),
            (self.ttfet, self.conversation_s, 2, 2.0, 20.0),
        ):
            during = [step[which] for step in self.past if step[0] > at_s - length_s]
            share = sum(during) / len(during)
            samples.append((at_s - length_s, at_s, fast_s + (slow_s - fast_s) * share))


def control(served: Served, breaks: dict[str, float], seconds: int, law: PowerController) -> list[
    tuple[float, object]
]:  # fmt: skip
    """1 + 3 GPUs, from second 10 on with work for 1170 W."""
    made: list[tuple[float, object]] = []
    for second in range(1, seconds):
        now = float(second)
        for tenth in range(10):
            served.serve(now - 1 + tenth / 10, breaks)
        wants = 300.0 if now >= 10 else 60.0
        tiers = (
            tier("d", Role.DECODE, served.caps["d"], 3, watts=3 * min(wants, served.caps["d"])),
            tier("p", Role.PREFILL, served.caps["p"], watts=min(wants, served.caps["p"])),
        )
        tbt, ttfet = (
            recent_latency(samples, now, moved_at_s=law.moved_at_s, window_s=30.0)
            for samples in (served.tbt, served.ttfet)
        )
        moves = law.handle(replace(seen(now, *tiers), tbt=tbt, ttfet=ttfet))
        made += [(now, move) for move in moves]
        for move in moves:
            if isinstance(move, CapMove):
                served.caps[move.tier] = move.after_w
    return made


@pytest.mark.parametrize("turn_s", [0.5, 5.0, 20.0])
@pytest.mark.parametrize("conversation_s", [5.0, 60.0])
def test_late_latencies_move_caps_no_further_than_needed(
    turn_s: float, conversation_s: float
) -> None:
    """Decode breaks below 200 W, prefill below 220 W: one step from 188 W is enough."""
    served, controller = Served(turn_s, conversation_s), law()
    made = control(served, {"d": 200.0, "p": 220.0}, 300, controller)
    assert served.caps == {"d": 213.0, "p": 225.0}
    assert len(made) == 3  # the budget's, and the two of the exchange
    assert controller.max_running is None
    late = [value for _, ended, value in served.tbt if ended > 280]
    assert max(late) <= 0.1


def test_prefill_gets_back_what_it_paid_too_much() -> None:
    """Prefill breaks below 240 W, as it turns out after it has paid: decode can spare that."""
    served, controller = Served(2.0, 10.0), law()
    made = control(served, {"d": 190.0, "p": 240.0}, 600, controller)
    assert served.caps["d"] >= 190.0
    assert served.caps["p"] >= 240.0
    assert sum(served.caps[name] * count for name, count in (("d", 3), ("p", 1))) <= 864
    assert not [move for at_s, move in made if at_s > 300]
