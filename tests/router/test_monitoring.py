"""The dashboard and the alerts ask only for what a running router exports."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from conserve_sglang.core.tier import EnergySettings, ObserveSettings
from conserve_sglang.telemetry.assets import alert_rules
from conserve_sglang.telemetry.dashboard import dashboard, queries
from conserve_sglang.telemetry.power import PowerCollector, PowerReading
from tests.fakes.agent import FakeAgent, an_agent
from tests.fakes.certificates import Authority
from tests.fakes.router_cluster import Cluster, a_cluster
from tests.telemetry.promql import labels_in, metrics_in

GLOSSARY = Path(__file__).parents[2] / "GLOSSARY.md"
FROM_THE_SCRAPE = {"instance", "job"}  # set by Prometheus itself
OF_PROMETHEUS = {"up": FROM_THE_SCRAPE}


async def exposition(cluster: Cluster) -> str:
    answer = await cluster.request("GET", "/metrics", cluster.service.control_port)
    return answer.body.decode()


async def worked_through(folder: Path) -> str:
    """The metrics of a router that has met everything a metric is about."""
    authority = Authority(folder)
    often = ObserveSettings(report_interval_s=0.05)
    async with an_agent(10.0) as agent:
        agent.counters = [["d0", "d0", "decode", "measured", "own", 60.0]]
        energy = EnergySettings(agent_port=agent.port)
        async with a_cluster(observe=often, energy=energy, tls=authority.issue()) as cluster:
            cluster.tls = authority.client()
            return await _all_met(cluster, agent)


async def _all_met(cluster: Cluster, agent: FakeAgent) -> str:
    await cluster.until(lambda: len(cluster.service.reports.latest()) == 3)
    await cluster.chat("hello", stream=True)
    await cluster.chat("hello", "the answer", "more", stream=True)
    assert cluster.service.energy is not None
    await cluster.service.energy.ask()
    agent.settled_age_s = 0.0  # a later settling, so that there is power
    await cluster.service.energy.ask()
    return await exposition(cluster) + of_the_controller()


def of_the_controller() -> str:
    """What a router with a power budget adds."""
    registry = CollectorRegistry()
    reading = PowerReading(
        budget_w=600.0,
        watts=500.0,
        caps_w={"lean": 200.0},
        max_running=8,
        num_moves={("cap", "over_budget"): 1},
    )
    registry.register(PowerCollector(lambda: reading))
    return generate_latest(registry).decode()


def exported(text: str) -> dict[str, set[str]]:
    """Each series name with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(alert_rules())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


async def test_every_metric_and_label_asked_for_is_exported(tmp_path: Path) -> None:
    series = exported(await worked_through(tmp_path)) | OF_PROMETHEUS
    expressions = [*queries(), *(rule["expr"] for rule in rules())]
    assert len(expressions) > 40
    for expression in expressions:
        names = metrics_in(expression)
        assert names, expression
        assert names <= set(series), f"{expression}: {names - set(series)} is not exported"
        labels = set().union(*(series[name] for name in names)) | FROM_THE_SCRAPE
        asked = labels_in(expression)
        assert asked <= labels, f"{expression}: no label {asked - labels}"


async def test_every_series_exported_is_shown_or_alerted_on_and_in_the_glossary(
    tmp_path: Path,
) -> None:
    text = await worked_through(tmp_path)
    glossary = GLOSSARY.read_text()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert not {name for name in families if f"`{name}" not in glossary}
    asked = set().union(*map(metrics_in, [*queries(), *(rule["expr"] for rule in rules())]))
    untold = {
        name
        for name in exported(text)
        if name.startswith("conserve_") and not name.endswith(("_sum", "_count", "_created"))
    }
    unshown = untold - asked
    assert unshown == {"conserve_tenant_prompt_tokens_total", "conserve_tenant_cached_tokens_total"}


def test_the_labels_that_alerts_speak_of_are_there_when_they_fire() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "what_to_do"}


def test_the_dashboard_is_whole() -> None:
    document = dashboard()
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    variables = {each["name"] for each in document["templating"]["list"]}
    assert variables == {"datasource", "instance", "tier"}
    assert all(f"${name}" in " ".join(queries()) for name in ("instance", "tier"))


@pytest.mark.parametrize("title", ["TTFET", "KV occupancy as reported"])
def test_panels_have_a_unit_and_a_query(title: str) -> None:
    (panel,) = [panel for panel in dashboard()["panels"] if panel["title"] == title]
    assert panel["fieldConfig"]["defaults"]["unit"] in ("s", "percentunit")
    assert panel["targets"]
