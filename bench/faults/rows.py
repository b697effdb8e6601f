"""The rows of the table: what goes wrong, and at which moment of one conversation's turns."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bench.faults.site import Site
from bench.faults.talk import Script, Seen
from bench.faults.worker import Pace

Deed = Callable[[Site, str], Awaitable[None]]
MID_STREAM_EVENTS = 4
ALL = "all decoders"
SMALL_POOL_TOKENS = 400  # room for one or two conversations of the fast script
CROWD = 10  # conversations that want to be there at the same time
FULL_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong, and how it is made good when the conversations are over."""

    name: str
    strike: Deed
    heal: Deed


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """A moment of conversation 0: in a turn, `after_s` behind an event of that turn, or when
    `until`, which is called at that event and gets the site, is done."""

    name: str
    turn: int
    moment: str
    after_s: float = 0.0
    until: Callable[[Site], Awaitable[None]] | None = None

    async def come(self, site: Site) -> None:
        """Wait, from the event on, until the moment has come."""
        if self.until is None:
            await asyncio.sleep(self.after_s)
        else:
            await self.until(site)

    def has_come(self, seen: Seen, moment: str) -> bool:
        """Whether what a client saw is that moment."""
        if (seen.conversation, seen.turn, moment) != (0, self.turn, self.moment):
            return False
        return moment != "tokens" or len(seen.heard_at_s) >= MID_STREAM_EVENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A fault at a moment. `victim`: "decoder" is that of conversation 0, else a name.

    `script` is what is played where that is not what the other rows play.
    """

    fault: Fault
    when: When
    victim: str = "decoder"
    script: Script | None = None
    capacity: int | None = None  # KV tokens of each decoder; needs a site of its own

    @property
    def name(self) -> str:
        """What stands in the table."""
        return f"{self.fault.name} {self.when.name}"


async def _kill(site: Site, victim: str) -> None:
    site.kill(victim)


async def _start(site: Site, victim: str) -> None:
    site.start_worker(victim)


async def _kill_and_start(site: Site, victim: str) -> None:
    site.kill(victim)
    site.start_worker(victim)


async def _freeze(site: Site, victim: str) -> None:
    site.signal(victim, signal.SIGSTOP)


async def _thaw(site: Site, victim: str) -> None:
    site.signal(victim, signal.SIGCONT)


async def _slow(site: Site, victim: str) -> None:
    site.slow(victim)


async def _no_longer_slow(site: Site, victim: str) -> None:
    await site.no_longer_slow(victim)


async def _drain(site: Site, victim: str) -> None:
    status, told = await site.control("POST", f"/admin/workers/{victim}-0/drain?timeout_s=100")
    if status != 200 or told["running_turns"]:
        raise SystemExit(f"{victim} did not drain: {status} {told}")


async def _undrain(site: Site, victim: str) -> None:
    await site.control("POST", f"/admin/workers/{victim}-0/undrain")


async def _fill_queue(site: Site, victim: str) -> None:
    await site.fill_queue(victim, is_full=True)


async def _empty_queue(site: Site, victim: str) -> None:
    await site.fill_queue(victim, is_full=False)


async def _restart_router(site: Site, victim: str) -> None:
    site.kill("router")
    await site.start_router()


async def _see_it_full(site: Site, victim: str) -> None:
    """Wait until turns wait and no decoder has room for one more conversation like its own."""
    deadline = time.monotonic() + FULL_LIMIT_S
    while not (await site.num_queued() and all(map(_is_full, await site.decoder_loads()))):
        if time.monotonic() > deadline:
            raise SystemExit(f"no turn waited for KV room in {FULL_LIMIT_S:g} s: not full")
        await asyncio.sleep(0.02)


def _is_full(load: dict[str, Any]) -> bool:
    taken, num = load["kv_resident_tokens"] + load["kv_reserved_tokens"], load["conversations"]
    return bool(num and load["kv_free_tokens"] < taken / num)


async def _nothing(site: Site, victim: str) -> None:
    await asyncio.sleep(0)


KILLED = Fault(name="killed (-9)", strike=_kill, heal=_start)
KILLED_AND_STARTED = Fault(name="killed (-9), started", strike=_kill_and_start, heal=_nothing)
FROZEN = Fault(name="frozen (SIGSTOP)", strike=_freeze, heal=_thaw)
SLOW = Fault(name="slow (a tenth)", strike=_slow, heal=_no_longer_slow)
DRAINED = Fault(name="drained", strike=_drain, heal=_undrain)
BUSY = Fault(name="busy (503)", strike=_fill_queue, heal=_empty_queue)
FULL = Fault(name="full", strike=_see_it_full, heal=_nothing)
ROUTER = Fault(name="killed and restarted", strike=_restart_router, heal=_nothing)


ALWAYS = When(name="all the time", turn=1, moment="asked")


def decoder_moments(local_prefill_s: float) -> tuple[When, ...]:
    """When something may go wrong with the decoder of a conversation that is pinned."""
    return (
        When(name="before the first token", turn=2, moment="asked", after_s=local_prefill_s / 2),
        When(name="mid-stream", turn=2, moment="tokens"),
        When(name="between turns", turn=2, moment="answered"),
    )


def prefiller_moments(prefill_s: float, transfer_s: float) -> tuple[When, ...]:
    """When something may go wrong with the prefiller (or the decoder) of a new conversation."""
    during_s = prefill_s + transfer_s / 2
    return (
        When(name="before the transfer", turn=1, moment="asked", after_s=prefill_s / 2),
        When(name="during the transfer", turn=1, moment="asked", after_s=during_s),
        When(name="after the transfer", turn=1, moment="tokens"),
    )


def fast_rows(prefiller: str, pace: Pace) -> list[Row]:
    """All rows, for fake workers."""
    moments = decoder_moments(pace.local_prefill_s)
    rows = [
        Row(fault=fault, when=when) for fault in (KILLED, FROZEN, SLOW, DRAINED) for when in moments
    ]
    rows.append(Row(fault=BUSY, when=moments[-1]))
    first = prefiller_moments(pace.prefill_s, pace.transfer_s)
    rows.append(Row(fault=KILLED, when=first[1]))
    rows += [Row(fault=KILLED, when=when, victim=prefiller) for when in first]
    rows.append(Row(fault=FULL, when=ALWAYS, victim=ALL, capacity=SMALL_POOL_TOKENS))
    rows += [Row(fault=ROUTER, when=when, victim="router") for when in moments]
    return rows
