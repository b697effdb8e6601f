"""What does the phase log cost a decode step of a worker?

The hooks alone, over requests and batches that are stand-ins, with a real file: the mean time of
one step's two calls (`launched`, and `ending` with `ended`) for batches of several sizes. Decode
steps of 10 ms follow one another on a clock that is told, so a line is written each 25 steps, as it
would be. `churn` has one request of the batch leave and another join at every step, which is more
than a server sees. Also the bytes of log a second. Not measured: the hook registry's own wrapper
around the two functions.

    python -m bench.phase_log_cost
"""

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import save, spread
from conserve_sglang.core.turn_tag import tagged
from conserve_sglang.plugin.phase_log import PhaseLog

SIZES = (1, 8, 64, 256)
STEP_S = 0.010
NUM_STEPS = 4000
ROUNDS = 7


class _Mode:
    def is_decode(self) -> bool:
        return True

    def is_target_verify(self) -> bool:
        return False

    def is_extend(self) -> bool:
        return False


class _Req:
    def __init__(self, number: int) -> None:
        self.routing_key = tagged(None, f"conv-{number:032x}", 1 + number % 7)
        self.origin_input_ids = [0] * 4000
        self.output_ids: list[int] = []

    def finished(self) -> bool:
        return False


class _Batch:
    forward_mode = _Mode()

    def __init__(self, reqs: list[_Req]) -> None:
        self.reqs = reqs
        self.launch_ts = 0.0


def _round(folder: Path, size: int, *, churns: bool) -> tuple[float, float]:
    """Microseconds a step, and log bytes a second of serving."""
    now_s = [0.0]
    log = PhaseLog(folder / "w.phases", 1 << 30, "decode", lambda: now_s[0])
    reqs = [_Req(number) for number in range(size)]
    chance = random.Random(0)
    spent_s = 0.0
    for number in range(NUM_STEPS):
        if churns:
            reqs[chance.randrange(size)] = _Req(size + number)
        batch = _Batch(reqs[:])
        batch.launch_ts = now_s[0]
        began_s = time.perf_counter()
        log.launched(batch)
        log.ending(batch)
        spent_s += time.perf_counter() - began_s
        for req in reqs:
            req.output_ids.append(1)
        now_s[0] += STEP_S
        began_s = time.perf_counter()
        log.ended(batch)
        spent_s += time.perf_counter() - began_s
    num_bytes = (folder / "w.phases").stat().st_size
    return 1e6 * spent_s / NUM_STEPS, num_bytes / (NUM_STEPS * STEP_S)


def main() -> None:
    """Print a table, and keep it."""
    rows: list[dict[str, Any]] = []
    print("batch  churn  us a step, p50 (least-most)   of a 10 ms step   log kB/s")
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for churns in (False, True):
                found = [_round(Path(folder), size, churns=churns) for _ in range(ROUNDS)]
                us = spread([each for each, _ in found])
                per_s = found[0][1]
                rows.append(
                    {"batch": size, "churns": churns, "us_a_step": us, "log_bytes_a_s": per_s}
                )
                print(
                    f"{size:5}  {'yes' if churns else 'no':5}  {us['p50']:9.1f}"
                    f" ({us['min']:.1f}-{us['max']:.1f}){'':6}{us['p50'] / 1e4:15.2%}"
                    f"{per_s / 1e3:11.1f}"
                )
    print(f"kept in {save('phase_log_cost', {'step_s': STEP_S, 'rows': rows})}")


if __name__ == "__main__":
    main()
