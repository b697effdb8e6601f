"""The agent's caps without a holder, or with one that is gone; with one: test_caps_live."""

import json
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.testclient import TestClient

from conserve_sglang.agent.caps import CapsPart


def client(part: CapsPart) -> TestClient:
    return TestClient(Starlette(routes=list(part.routes())))


def ask(at: TestClient, body: Any) -> tuple[int, dict[str, Any]]:
    answer = at.post("/caps", content=body if isinstance(body, bytes) else json.dumps(body))
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
    part = CapsPart(str(tmp_path / "gone.sock"))
    status, said = ask(client(part), {"caps": {}})
    assert (status, said["gpus"]) == (409, {})
    assert "does not answer" in part.health()["problem"]


def test_a_body_that_is_no_object_is_refused(tmp_path: Path) -> None:
    at = client(CapsPart(str(tmp_path / "gone.sock")))
    assert ask(at, b"[1]")[0] == 400
    assert ask(at, b"{")[0] == 400
