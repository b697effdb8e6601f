"""The control law in a closed loop over NVML, as a script: prints what became of it, as JSON.

    python closed_loop.py STATE_FILE METER SECONDS BUDGET_W [TBT_BREAKS_W [TTFET_BREAKS_W]]

METER is nvml (the energy counter), average (NVML's mean power of the last second) or zeus. The
GPUs' clock is turned second by second, so a minute takes a moment. GPU 0 prefills, the others
decode. The decoders' TBT is 0.05 s, and 0.2 s under caps below TBT_BREAKS_W; TTFET is 2 s, and
20 s under a prefill cap below TTFET_BREAKS_W. Ten turns a second end, after 5 s, and as many
conversations after 20 s; their latency is the mean over that time, told by the router's rule.
"""

import json
import struct
import sys
from pathlib import Path
from typing import Any

from conserve_sglang.core.errors import CapsError
from conserve_sglang.core.worker import Role
from conserve_sglang.energy.cap_records import CapRecords
from conserve_sglang.energy.holder import HeldGpu, Holder
from conserve_sglang.energy.knobs import Knobs
from conserve_sglang.energy.meter import Meter
from conserve_sglang.energy.nvml import NvmlMeter
from conserve_sglang.power.caps import Wish
from conserve_sglang.power.control import ControlSettings, PowerController
from conserve_sglang.power.latency_window import recent_latency
from conserve_sglang.power.observation import CapMove, Latency, Observation, TierReading

ROLES = {"p": Role.PREFILL, "d": Role.DECODE}
TURN_S, CONVERSATION_S = 5.0, 20.0


class Loop:
    def __init__(
        self, state: Path, meter: str, budget_w: float, breaks_w: float, prefill_breaks_w: float
    ) -> None:
        self.file = state.open("r+b")
        self.now_s = 0.0
        self.turn_clock(0.0)
        self.holder = Holder(Knobs(), CapRecords())
        import pynvml

        names = ["p"] + ["d"] * (pynvml.nvmlDeviceGetCount() - 1)
        self.holder.take(
            [Wish(host="x", index=index, tiers=(name,)) for index, name in enumerate(names)]
        )
        self.meter_name, self.breaks_w = meter, breaks_w
        self.prefill_breaks_w = prefill_breaks_w
        self.meter = self.open_meter()
        self.joules = {name: reading.joules for name, reading in self.meter.read().items()}
        self.past: list[tuple[float, float, float]] = []  # at, TBT, TTFET under the caps then
        self.controller = PowerController(
            ControlSettings(
                power_budget_w=budget_w,
                tbt_slo_s=0.1 if breaks_w else None,
                ttfet_slo_s=8.0 if prefill_breaks_w else None,
            )
        )

    def open_meter(self) -> Meter:
        if self.meter_name == "zeus":
            from conserve_sglang.energy.zeus import ZeusMeter

            return ZeusMeter(with_cpus=False, clock=lambda: self.now_s)
        return NvmlMeter(clock=lambda: self.now_s)

    def turn_clock(self, now_s: float) -> None:
        self.now_s = now_s
        self.file.seek(0)
        self.file.write(struct.pack("d", now_s))
        self.file.flush()

    def tbt_s(self) -> float:
        caps = [held.now_w or 0.0 for held in self.decoders()]
        return 0.2 if min(caps) < self.breaks_w else 0.05

    def ttfet_s(self) -> float:
        caps = [held.now_w or 0.0 for held in self.holder.gpus.values() if held.tiers == ("p",)]
        return 20.0 if min(caps) < self.prefill_breaks_w else 2.0

    def latency(self, now_s: float, which: int, length_s: float) -> Latency | None:
        """As the router tells it, of what took `length_s`."""
        samples = []
        for ended_s, *_ in self.past:
            during = [step[which] for step in self.past if ended_s - length_s < step[0] <= ended_s]
            samples.append((ended_s - length_s, ended_s, sum(during) / len(during)))
        moved_at_s = self.controller.moved_at_s
        return recent_latency(samples, now_s, moved_at_s=moved_at_s, window_s=30.0)

    def decoders(self) -> list[HeldGpu]:
        return [held for held in self.holder.gpus.values() if held.tiers == ("d",)]

    def second(self, now_s: float) -> dict[str, Any]:
        self.turn_clock(now_s)
        tbt_s, ttfet_s = self.tbt_s(), self.ttfet_s()
        self.past += [(now_s - 1 + tenth / 10, tbt_s, ttfet_s) for tenth in range(10)]
        self.past = self.past[-800:]
        readings = self.meter.read()
        used = {name: reading.joules - self.joules[name] for name, reading in readings.items()}
        self.joules = {name: reading.joules for name, reading in readings.items()}
        told = used
        if self.meter_name == "average":
            told = {name: reading.watts or 0.0 for name, reading in readings.items()}
        seen = Observation(
            at_s=now_s,
            measured_at_s=now_s,
            tiers=tuple(self.tier(name, told) for name in ROLES),
            tbt=self.latency(now_s, 1, TURN_S),
            ttfet=self.latency(now_s, 2, CONVERSATION_S),
        )
        moves = self.controller.handle(seen)
        error = None
        for move in moves:
            if isinstance(move, CapMove):
                gpus = [u for u, held in self.holder.gpus.items() if held.tiers == (move.tier,)]
                try:
                    self.holder.move(dict.fromkeys(gpus, move.after_w), move.why)
                except CapsError as refused:
                    error = str(refused)
        caps = {held.tiers[0]: held.now_w for held in self.holder.gpus.values()}
        moved = [f"{m.tier} {m.after_w:g}" for m in moves if isinstance(m, CapMove)]
        return {"watts": sum(used.values()), "caps": caps, "moves": moved,
                "tbt_s": self.tbt_s(), "ttfet_s": self.ttfet_s(), "error": error}  # fmt: skip

    def tier(self, name: str, told: dict[str, float]) -> TierReading:
        mine = {u: held for u, held in self.holder.gpus.items() if held.tiers == (name,)}
        first = next(iter(mine.values()))
        assert first.now_w is not None
        assert first.base_w is not None
        assert first.found.least_w is not None
        self.holder.look()
        return TierReading(
            tier=name,
            role=ROLES[name],
            num_gpus=len(mine),
            watts=sum(told[uuid] for uuid in mine),
            cap_w=first.now_w,
            base_w=first.base_w,
            least_w=first.found.least_w,
            is_held=not any(held.is_foreign for held in mine.values()),
        )


def main() -> None:
    state, meter, seconds, budget_w, *breaks_w = sys.argv[1:]
    tbt_w, ttfet_w = [*map(float, breaks_w), 0.0, 0.0][:2]
    loop = Loop(Path(state), meter, float(budget_w), tbt_w, ttfet_w)
    rows = [loop.second(float(now)) for now in range(1, int(seconds) + 1)]
    put_back = [each.message for each in loop.holder.restore()]
    sys.stdout.write(json.dumps({"rows": rows, "put_back": put_back}))


main()
