"""The installed command, run in process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


RunCli = Callable[..., Ran]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Run `conserve-sglang ARGS` through its entry point."""
    (point,) = entry_points(group="console_scripts", name="conserve-sglang")

    def run(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["conserve-sglang", *map(str, args)])
        code: object = 0
        try:
            point.load()()
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        assert code is None or isinstance(code, int)
        return Ran(code=code or 0, out=captured.out, err=captured.err)

    return run
