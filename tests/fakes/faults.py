"""What a fake worker does wrong when it is told to."""

from dataclasses import dataclass, field


@dataclass
class Faults:
    """What goes wrong; counts go down with each request that meets it."""

    statuses: list[int] = field(default_factory=list)  # answer the next requests with these
    refusals: list[str] = field(default_factory=list)  # refuse the next local turns so
    queue_is_full: bool = False  # of turns it prefills itself, as with --max-queued-requests 0
    num_cuts_before_head: int = 0
    num_cuts_after_head: int = 0
    cut_after_events: int | None = None
    closes_after_answer: bool = False
    num_busy_flushes: int = 0
    delay_s: float = 0.0
    probe_delay_s: float = 0.0
    event_delay_s: float = 0.0
    last_chunk_delay_s: float = 0.0  # between the last event and the end of the chunks
    split_bytes: int = 0  # write the answer in pieces of so many bytes
