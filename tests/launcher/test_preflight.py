import importlib.util

import pytest

from conserve_sglang.launcher import preflight


def test_a_missing_sglang_is_installed_without_its_cuda_requirements(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (line,) = preflight._sglang()
    assert "pip install --no-deps sglang==0.5.23" in line
    assert "make setup" in line
