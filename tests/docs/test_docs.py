"""What the documents say is true of the code: commands run, words and files exist."""

import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from conserve_sglang.policy import POLICIES, PlacementReason
from conserve_sglang.telemetry.metrics import RouterMetrics
from conserve_sglang.telemetry.prometheus import Gauges, RouterCollector

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/README.md")])
COMMAND = Path(sys.executable).parent / "conserve-sglang"


def commands(document: Path) -> list[str]:
    """Indented command lines of a document, without their comments."""
    lines = document.read_text().splitlines()
    found = [line[4:] for line in lines if line.startswith("    conserve-sglang ")]
    return [line.split("  #")[0].strip() for line in found]


def make_targets(text: str) -> set[str]:
    return set(re.findall(r"`make ([a-z-]+)`|^ {4}make ([a-z-]+)", text, re.M))


@pytest.mark.parametrize("command", sorted({c for d in DOCUMENTS for c in commands(d)}))
def test_every_command_shown_is_accepted(command: str) -> None:
    argv = shlex.split(command)[1:]
    if argv[0] == "launch" and "--dry-run" not in argv:
        argv.append("--dry-run")
    if any(word.isupper() and len(word) > 1 for word in argv) or "--new-manifest" in argv:
        argv = [argv[0], "--help"]
    done = subprocess.run(
        [str(COMMAND), *argv], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    allowed = {0, 1} if argv[0] in ("doctor", "energy") else {0}  # no GPU, no SGLang: said so
    assert done.returncode in allowed, done.stdout + done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_and_links_exist(document: Path) -> None:
    text = document.read_text()
    targets = {name for pair in make_targets(text) for name in pair if name}
    makefile = (ROOT / "Makefile").read_text()
    assert not {name for name in targets if not re.search(rf"^{name}:", makefile, re.M)}
    links = re.findall(r"\]\(([^)#]+)\)", text)
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (document.parent / link).exists()]


def test_glossary_has_every_policy_reason_and_metric() -> None:
    glossary = (ROOT / "GLOSSARY.md").read_text()
    no_gauges = Gauges(queue_depths={}, num_open_turns=0, num_conversations=0, workers=())
    families = RouterCollector(RouterMetrics, lambda: no_gauges).collect()
    names = {family.name for family in families}
    names |= set(POLICIES) | {reason.value for reason in PlacementReason}
    assert not {name for name in names if f"`{name}" not in glossary}


def test_tier_maps_of_the_readme_are_the_ones_shipped() -> None:
    table = (ROOT / "tier_maps" / "README.md").read_text()
    shipped = {path.name for path in (ROOT / "tier_maps").glob("*.yaml")}
    assert {name for name in shipped if f"`{name}`" in table} == shipped


def test_architecture_places_every_module_of_the_router() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.split("## The router's modules")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z_*]+)`", table))
    modules = {path.stem for path in (ROOT / "conserve_sglang/router").glob("*.py")} - {"__init__"}
    assert not {each for each in modules if not any(fnmatch(each, name) for name in named)}
    assert not {name for name in named if not any(fnmatch(each, name) for each in modules)}
