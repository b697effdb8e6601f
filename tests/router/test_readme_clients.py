"""The client lines of the README, run as they are written, but for the port and the model."""

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.fakes.router_cluster import a_cluster

README = Path(__file__).parents[2] / "README.md"
SHOWN = re.findall(
    r"^    (export [A-Z]+_BASE_URL=.*\n    python -c '[^']*')$", README.read_text(), re.M
)


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: shown.split("_")[0].split()[-1])
async def test_shown_line_gets_an_answer(shown: str) -> None:
    async with a_cluster() as cluster:
        line = shown.replace(":30000", f":{cluster.service.port}").replace("tiny-qwen3", "tiny")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        process = await asyncio.create_subprocess_exec(
            *("bash", "-ec", line),
            env={**os.environ, "PATH": path},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert "the answer" in out.decode()


def test_both_clients_are_shown() -> None:
    assert [shown.split("_")[0] for shown in SHOWN] == ["export OPENAI", "export ANTHROPIC"]
