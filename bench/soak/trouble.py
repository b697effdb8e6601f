"""Random faults, one decoder and one prefiller at a time."""

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from random import Random

from bench.faults.rows import DRAINED, FROZEN, KILLED, SLOW, Fault
from bench.faults.site import Site

LASTS_S = (0.3, 3.0)


class Trouble:
    """Strikes workers of a site at random, `mean_pause_s` apart, until it is told to stop."""

    def __init__(self, site: Site, mean_pause_s: float, seed: int) -> None:
        self.struck: Counter[str] = Counter()
        self._site = site
        self._mean_pause_s = mean_pause_s
        self._random = Random(seed)
        self._is_over = asyncio.Event()

    async def make(self, seconds: float) -> None:
        """Make trouble for so long, among decoders and among prefillers; all is healed then."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds
        decoders = (KILLED, FROZEN, SLOW, DRAINED)
        await asyncio.gather(
            self._among(self._site.decoders, decoders, end_s),
            self._among(self._site.prefillers, (KILLED, FROZEN, SLOW), end_s),
        )

    async def _among(self, victims: Sequence[str], faults: Sequence[Fault], end_s: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._random.expovariate(1 / self._mean_pause_s))
            if loop.time() >= end_s:
                return
            fault, victim = self._random.choice(faults), self._random.choice(victims)
            self.struck[f"{fault.name}, {victim[0]}"] += 1
            await fault.strike(self._site, victim)
            await asyncio.sleep(self._random.uniform(*LASTS_S))
            await fault.heal(self._site, victim)
            self._site.signal(victim, signal.SIGCONT)
