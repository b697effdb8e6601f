"""What is seen of a simulation while it runs: latencies to be drawn, and a progress bar."""

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conserve_sglang.sim import ConversationRecord, Outcome

Told = Callable[[ConversationRecord], None]


class Latencies:
    """A sink that keeps the latencies of conversations, eight bytes each; infinite for those that
    were not answered."""

    def __init__(self) -> None:
        self.ttfet_s, self.last_turn_tbt_s, self.e2e_s = array("d"), array("d"), array("d")

    def __call__(self, record: ConversationRecord) -> None:
        """Take in a conversation that is over."""
        is_answered = record.outcome is Outcome.ANSWERED
        self.ttfet_s.append(record.ttfet_s if is_answered else inf)
        self.e2e_s.append(record.e2e_s if is_answered else inf)
        has_tbt = record.plan.turns[-1].output_tokens > 1
        tbt_s = record.last_turn_tbt_s if is_answered else (inf if has_tbt else None)
        if tbt_s is not None:
            self.last_turn_tbt_s.append(tbt_s)


@contextmanager
def progress(name: str, total: int) -> Iterator[Told]:
    """A bar on the terminal's error output, one step a conversation; nothing if that is none."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(name, total=total)
        yield lambda _: bar.advance(task)
