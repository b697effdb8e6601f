"""Files for an operator's monitoring: the dashboard for Grafana, alert rules for Prometheus."""

from importlib.resources import files
from pathlib import Path

from conserve_sglang.telemetry.dashboard import dashboard_json


def alert_rules() -> str:
    """The alert rules as Prometheus reads them."""
    return files(__name__).joinpath("alerts.yaml").read_text(encoding="utf-8")


def write_all(folder: Path) -> tuple[tuple[Path, str], ...]:
    """Write all into a folder, made if it is not there; each file with what it is for."""
    folder.mkdir(parents=True, exist_ok=True)
    written = (
        (folder / "conserve-sglang.json", dashboard_json(), "import it in Grafana"),
        (folder / "conserve-sglang-alerts.yaml", alert_rules(), "name it in rule_files"),
    )
    for path, text, _ in written:
        path.write_text(text, encoding="utf-8")
    return tuple((path, use) for path, _, use in written)
