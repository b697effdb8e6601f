"""Showing a stock function only the part of the waiting queue that is meant for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_VIEW = "conserve_view"


@dataclass(slots=True)
class View:
    """The part of the queue put aside, and which newcomers belong there."""

    shows: Callable[[Any], bool]
    parked: list[Any] = field(default_factory=list)


@contextmanager
def narrowed(
    scheduler: Any, shows: Callable[[Any], bool], limit: int | None = None
) -> Iterator[None]:
    """Leave in `waiting_queue` the requests that `shows` accepts, at most `limit` of them.

    The others come back behind what the stock function left, in their old order.
    """
    view = View(shows)
    shown: list[Any] = []
    for req in scheduler.waiting_queue:
        is_shown = shows(req) and (limit is None or len(shown) < limit)
        (shown if is_shown else view.parked).append(req)
    scheduler.waiting_queue = shown
    setattr(scheduler, _VIEW, view)
    try:
        yield
    finally:
        setattr(scheduler, _VIEW, None)
        scheduler.waiting_queue = [*scheduler.waiting_queue, *view.parked]


def park_newcomer(scheduler: Any, req: Any) -> None:
    """Put aside a request that joined the queue while it was narrowed to others.

    A request whose grammar becomes ready is queued from inside the very functions that then take
    from the queue.
    """
    view: View | None = getattr(scheduler, _VIEW, None)
    queue = scheduler.waiting_queue
    if view is not None and queue and queue[-1] is req and not view.shows(req):
        view.parked.append(queue.pop())


@contextmanager
def as_null_mode(scheduler: Any) -> Iterator[None]:
    """Let stock code treat what it does inside as on a server without disaggregation.

    The scheduler is single-threaded, and none of what runs inside does forward work.
    """
    mode = scheduler.disaggregation_mode
    scheduler.disaggregation_mode = type(mode).NULL
    try:
        yield
    finally:
        scheduler.disaggregation_mode = mode
