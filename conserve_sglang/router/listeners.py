"""Whoever wants to hear of each turn beside the metrics: the access log, and traces.

There is none unless it was asked for, and then nothing is paid for it.
"""

import logging
from collections.abc import Callable
from typing import Protocol

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import ObserveSettings
from conserve_sglang.dispatch import FailureCause, SendTurn
from conserve_sglang.router.access_log import AccessLog, access_log
from conserve_sglang.router.measured import MeasuredTurn
from conserve_sglang.telemetry.metrics import Outcome
from conserve_sglang.workers.usage import Usage


class TurnListener(Protocol):
    """Hears the steps of turns."""

    def sent(self, turn: MeasuredTurn, command: SendTurn) -> None:
        """An attempt begins, before anything is written to a worker."""
        ...

    def began(self, turn: MeasuredTurn) -> None:
        """The first byte of the answer is there."""
        ...

    def failed(self, turn: MeasuredTurn, cause: FailureCause) -> None:
        """An attempt failed."""
        ...

    def closed(
        self, turn: MeasuredTurn, outcome: Outcome, usage: Usage | None, total_s: float
    ) -> None:
        """The turn is over, `total_s` after its arrival."""
        ...

    def stop(self) -> None:
        """The router stops."""
        ...


def turn_listeners(
    settings: ObserveSettings, clock: Callable[[], float]
) -> tuple[TurnListener, ...]:
    """Those that were asked for. Raises ConfigError if one cannot be had."""
    listeners: list[TurnListener] = []
    if access_log.isEnabledFor(logging.INFO):
        listeners.append(AccessLog(has_names=settings.log_conversation_names))
    if settings.otlp_endpoint is not None:
        listeners.append(_traces(settings.otlp_endpoint, settings.trace_ratio, clock))
    return tuple(listeners)


def _traces(endpoint: str, ratio: float, clock: Callable[[], float]) -> TurnListener:
    try:
        from conserve_sglang.router.traces import TurnTraces
        from conserve_sglang.telemetry.tracing import tracing_over_http
    except ImportError as error:
        raise ConfigError(
            f"router.observe.otlp_endpoint: OpenTelemetry is not installed ({error.name})."
            " Run pip install 'conserve-sglang[otel]', or leave the field out."
        ) from error
    return TurnTraces(tracing_over_http(endpoint, ratio), clock)
