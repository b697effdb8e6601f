"""The power controller's metrics, read whenever Prometheus asks."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerReading:
    """The controller at one moment; watts None: nothing measured. Moves are by kind and reason."""

    budget_w: float | None
    watts: float | None
    caps_w: Mapping[str, float] = field(default_factory=dict)
    max_running: int | None = None
    is_infeasible: bool = False
    is_blind: bool = False
    num_over: int = 0
    num_moves: Mapping[tuple[str, str], int] = field(default_factory=dict)


class PowerCollector(Collector):
    """Names: GLOSSARY.md."""

    def __init__(self, read: Callable[[], PowerReading]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """All metric families."""
        seen = self._read()
        for name, text, value in (
            ("budget_watts", "Power the deployment may draw", seen.budget_w),
            ("watts", "Power it draws, measured, mean of the last period", seen.watts),
            ("max_running_turns", "Turns that may run at once, if bounded", seen.max_running),
            ("infeasible", "1 while the budget is below what the least caps allow",
             float(seen.is_infeasible)),
            ("blind", "1 while nothing is measured, so that no cap is held",
             float(seen.is_blind)),
        ):  # fmt: skip
            if value is not None:
                yield GaugeMetricFamily(f"conserve_power_{name}", text, value=value)
        caps = GaugeMetricFamily(
            "conserve_power_cap_watts", "Power cap of each GPU of a tier", labels=("tier",)
        )
        for tier, watts in seen.caps_w.items():
            caps.add_metric((tier,), watts)
        yield caps
        text = "Control periods in which more than the budget was drawn"
        yield CounterMetricFamily("conserve_power_over_budget_periods", text, value=seen.num_over)
        moves = CounterMetricFamily(
            "conserve_power_moves", "Moves of the power controller", labels=("kind", "reason")
        )
        for labels, count in seen.num_moves.items():
            moves.add_metric(labels, count)
        yield moves
