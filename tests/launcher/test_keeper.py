"""A tree that may say its last words before it is killed; the others are killed at once."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from conserve_sglang.launcher.plan import LAST_WORDS_S, ProcessKind, ProcessSpec, router_spec
from conserve_sglang.launcher.process import Child, Lifeline
from conserve_sglang.launcher.supervise import SuperviseSettings, Supervisor
from tests.fakes.router_cluster import SETTINGS, a_tier_map

from .test_supervise import plan_of, until

TOLD_TWICE = """
import pathlib, signal, sys, time
told = []
def hear(number, frame):
    told.append(number)
    if len(told) == 2:
        time.sleep(0.3)
        pathlib.Path(sys.argv[1]).write_text("told twice")
        sys.exit()
signal.signal(signal.SIGTERM, hear)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""
ORPHANED = """
import os, pathlib, sys, time
main = os.getpid()
if os.fork():
    print("ready", flush=True)
    time.sleep(60)
while os.getppid() == main:
    time.sleep(0.01)
time.sleep(0.3)
pathlib.Path(sys.argv[1]).write_text("orphaned")
"""


async def started(folder: Path, script: str, last_words_s: float) -> tuple[Child, Path, Lifeline]:
    words, log = folder / "words", folder / "log"
    spec = ProcessSpec(
        name="r",
        kind=ProcessKind.ROUTER,
        argv=(sys.executable, "-c", script, str(words)),
        env={},
        health_host="127.0.0.1",
        health_port=1,
        listens=(),
        last_words_s=last_words_s,
    )
    lifeline = Lifeline()
    child = await Child.start(spec, log=log, lifeline=lifeline, grace_s=60.0)
    await until(lambda: "\nready" in log.read_text())
    return child, words, lifeline


@pytest.mark.parametrize("last_words_s", [0.0, 10.0])
async def test_process_told_twice_has_its_last_words(tmp_path: Path, last_words_s: float) -> None:
    child, words, lifeline = await started(tmp_path, TOLD_TWICE, last_words_s)
    child.hurry()
    time.sleep(0.3)
    assert child._process.returncode is None
    child.hurry()
    await child.wait()
    assert words.exists() is (last_words_s > 0)
    lifeline.cut()


@pytest.mark.parametrize("last_words_s", [0.0, 10.0])
async def test_rest_of_a_tree_whose_main_process_died_has_too(
    tmp_path: Path, last_words_s: float
) -> None:
    child, words, lifeline = await started(tmp_path, ORPHANED, last_words_s)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert await child.wait() == 128 + signal.SIGKILL
    assert words.exists() is (last_words_s > 0)
    lifeline.cut()


def test_router_is_given_longer_than_it_may_take(tmp_path: Path) -> None:
    tier_map = a_tier_map({}, "conserve", SETTINGS)
    router = router_spec(tier_map, python="python")
    assert (router.drain_s, router.last_words_s) == (SETTINGS.drain_s, LAST_WORDS_S)
    settings = SuperviseSettings(log_dir=tmp_path)
    supervisor = Supervisor(plan_of(router=router), settings, lambda _: None)
    assert supervisor._grace_s(router) == SETTINGS.drain_s + settings.grace_s
