"""The agent's caps without a holder, or with one that is gone; with one: test_caps_live."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from conserve_sglang.agent.caps import CapsPart


def client(part: CapsPart) -> TestClient:
    return TestClient(Starlette(routes=list(part.routes())))


KEY = "the-launch's-own"


def ask(at: TestClient, body: Any, key: str = KEY) -> tuple[int, dict[str, Any]]:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = at.post("/caps", content=content, headers={"authorization": f"Bearer {key}"})
    return answer.status_code, answer.json()


def test_without_a_holder_nothing_is_in_hand_and_moves_are_refused() -> None:
    part = CapsPart()
    at = client(part)
    assert at.get("/caps").json()["gpus"] == {}
    assert ask(at, {"caps": {}})[0] == 200
    status, said = ask(at, {"caps": {"GPU-1": 200}})
    assert status == 409
    assert "--no-caps" in said["error"]
    assert "problem" not in part.health()  # as the launch wanted it


def test_a_holder_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    part = CapsPart(str(tmp_path / "gone.sock"), key=KEY)
    status, said = ask(client(part), {"caps": {}})
    assert (status, said["gpus"]) == (409, {})
    assert "does not answer" in part.health()["problem"]


def test_a_body_that_is_no_object_is_refused(tmp_path: Path) -> None:
    at = client(CapsPart(str(tmp_path / "gone.sock"), key=KEY))
    assert ask(at, b"[1]")[0] == 400
    assert ask(at, b"{")[0] == 400


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("shown", ["", "another"])
def test_caps_are_moved_only_with_the_key_of_the_launch(
    tmp_path: Path, key: str | None, shown: str
) -> None:
    part = CapsPart(str(tmp_path / "gone.sock"), key=key)
    status, said = ask(client(part), {"caps": {"GPU-1": 200}}, shown)
    assert status == 403
    assert "router.admin_key_env" in said["error"]
    assert "problem" not in part.health()


def test_an_agent_behind_the_admin_key_asks_for_no_other(tmp_path: Path) -> None:
    part = CapsPart(str(tmp_path / "gone.sock"), is_gated=True)
    assert ask(client(part), {"caps": {}}, "")[0] == 409
