"""Plays a script undisturbed and once for each row, and counts what became of the turns."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.faults.rows import ROUTER, Row
from bench.faults.site import Site
from bench.faults.talk import Script, Seen, difference, play

Expected = dict[tuple[int, int], str]
_RETRIES = "conserve_router_retries_total"
_CONTINUATIONS = "conserve_router_continuations_total"
_MOVED = frozenset(
    {"decoder_lost", "drained", "worker_removed", "prefix_missing", "reclaimed", "decoder_busy"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One row. `answered`: whole, once, and as in the undisturbed run.

    `asked_again`: by clients, because their connection broke; `lost`: neither answered nor told
    why not. `recovery_s`: the longest time that a client waited for its next byte after the fault.
    `was_late`: the answer had begun when the fault struck that was to strike before it.
    """

    victim: str
    fault: str
    turns: int
    answered: int
    retried: int
    continued: int
    moved: int
    asked_again: int
    error_events: int
    lost: int
    missing_tokens: int
    repeated_tokens: int
    recovery_s: float
    was_late: bool = False

    def breaches(self, *, clients_may_ask_again: bool) -> list[str]:
        """What breaks the rule that a turn is answered once, whatever happens."""
        found = [
            f"{self.victim} {self.fault}: {name.replace('_', ' ')} {value}, not 0"
            for name in ("error_events", "lost", "missing_tokens", "repeated_tokens")
            if (value := getattr(self, name))
        ]
        if self.answered != self.turns:
            found.append(f"{self.victim} {self.fault}: {self.answered} of {self.turns} answered")
        if self.asked_again and not clients_may_ask_again:
            found.append(f"{self.victim} {self.fault}: {self.asked_again} had to be asked again")
        return found

    def problems(self, *, clients_may_ask_again: bool) -> list[str]:
        """Breaches of the rule, and why the row may say nothing about it."""
        found = self.breaches(clients_may_ask_again=clients_may_ask_again)
        if self.was_late:
            found.append(f"{self.victim} {self.fault}: the answer had begun before; play it again")
        return found

    def as_record(self) -> dict[str, object]:
        """The row as plain values."""
        return {**asdict(self), "recovery_s": round(self.recovery_s, 2)}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Count":
        """A row as it was recorded."""
        return cls(**record)


class Disturbance:
    """Waits for a row's moment, lets the fault strike once, and remembers when."""

    def __init__(self, site: Site, row: Row, name: str) -> None:
        self._site = site
        self._row = row
        self._hurt = f"{name}-0"
        self.struck_at_s: float | None = None
        self.was_late = False  # the answer came before what was to strike before it
        self.victim = row.victim
        self._striking: asyncio.Task[None] | None = None

    async def on_moment(self, seen: Seen, moment: str) -> None:
        """Let it strike beside the conversations, which go on meanwhile."""
        is_open = self._striking is None
        if is_open and self._row.victim == "decoder" and (seen.conversation, seen.turn) == (0, 1):
            self.victim = (seen.decoder or self.victim).removesuffix("-0")
        if is_open and self._row.when.has_come(seen, moment):
            self._striking = asyncio.get_running_loop().create_task(self._strike(seen, moment))
            if moment == "answered":
                await asyncio.sleep(0.05)  # before the next turn is asked

    async def _strike(self, seen: Seen, moment: str) -> None:
        await self._row.when.come(self._site)
        if self.victim == "decoder":  # nothing of it was heard yet
            self.victim = await self._site.decoder_of(self._hurt)
        self.was_late = moment == "asked" and bool(seen.heard_at_s)
        self.struck_at_s = asyncio.get_running_loop().time()
        await self._row.fault.strike(self._site, self.victim)

    async def over(self, *, is_awaited: bool = True) -> None:
        """The conversations are over: make good what was done, and wait until all is well."""
        if self._striking is None:
            raise SystemExit(f"{self._row.name}: its moment did not come")
        await self._striking
        await self._row.fault.heal(self._site, self.victim)
        if is_awaited:
            await self._site.until_well()


async def undisturbed(site: Site, script: Script) -> Expected:
    """What the answers are when nothing goes wrong; two runs must agree."""
    runs = []
    for name in ("plain", "plain-again"):
        limit_s = site.answer_limit_s
        turns = await play(site.port, site.served_name, script, name, limit_s=limit_s)
        wrong = [seen for seen in turns if not seen.is_whole]
        if wrong:
            raise SystemExit(f"the undisturbed run fails: {wrong[0]}")
        runs.append({(seen.conversation, seen.turn): seen.text for seen in turns})
        await site.until_well()
    if runs[0] != runs[1]:
        raise SystemExit("two undisturbed runs differ: answers cannot be compared here")
    return runs[0]


async def run_row(
    site: Site,
    script: Script,
    row: Row,
    expected: Expected,
    name: str,
    *,
    is_awaited: bool = True,
) -> Count:
    """Play the script under one fault; wait until all is well again if that `is_awaited`."""
    await site.forget_prompts()
    before = await site.counts()
    disturbance = Disturbance(site, row, name)
    strike, limit_s = disturbance.on_moment, site.answer_limit_s
    turns = await play(site.port, site.served_name, script, name, strike, limit_s)
    after = await site.counts()
    await disturbance.over(is_awaited=is_awaited)
    if row.fault is ROUTER:
        before = {}  # it counts from its start
    missing = extra = 0
    for seen in turns:
        more, less = difference(
            expected[seen.conversation, seen.turn], seen.text, by_words=site.words
        )
        missing, extra = missing + more, extra + less
    is_prefiller = row.victim in site.prefillers
    return Count(
        victim="prefiller" if is_prefiller else row.victim,
        fault=row.name,
        turns=len(turns),
        answered=sum(
            seen.is_whole and seen.text == expected[seen.conversation, seen.turn] for seen in turns
        ),
        retried=round(after[_RETRIES] - before.get(_RETRIES, 0)),
        continued=round(after[_CONTINUATIONS] - before.get(_CONTINUATIONS, 0)),
        moved=sum(seen.reason in _MOVED for seen in turns),
        asked_again=sum(seen.asks - 1 for seen in turns),
        error_events=sum(seen.error is not None for seen in turns),
        lost=sum(not seen.is_whole and seen.error is None for seen in turns),
        missing_tokens=missing,
        repeated_tokens=extra,
        recovery_s=longest_wait_s(turns, disturbance.struck_at_s or 0.0),
        was_late=disturbance.was_late,
    )


def longest_wait_s(turns: Sequence[Seen], since_s: float) -> float:
    """The longest time a client waited for its next byte, of all waits that end after `since_s`."""
    waits = [0.0]
    for seen in turns:
        previous_s = seen.asked_at_s
        for heard_s in seen.heard_at_s:
            if heard_s > since_s:
                waits.append(heard_s - max(previous_s, since_s))
            previous_s = heard_s
    return max(waits)
