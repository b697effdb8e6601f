"""The CPU cures: dormant without the CPU engine, and stand-ins that can be imported, not used."""

import subprocess
import sys

import pytest

from conserve_sglang.plugin.cpu import is_cpu_engine
from conserve_sglang.plugin.standins import sgl_kernel

TORCHVISION = """
import sys
from conserve_sglang.plugin import cpu
sys.path.insert(0, str(cpu._STANDINS))
import torchvision.transforms.v2.functional
from torchvision.io import decode_image
from torchvision.transforms import InterpolationMode
assert InterpolationMode.BICUBIC
try:
    decode_image(b"")
except NotImplementedError as refused:
    print(refused)
"""
DORMANT = """
import sys
from conserve_sglang.plugin.cpu import apply_cpu_cures
before = list(sys.path)
apply_cpu_cures()
assert sys.path == before
assert "torch" not in sys.modules
"""


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("true", True), ("0", False)])
def test_the_engine_switch_is_read_as_sglang_reads_it(value: str, expected: bool) -> None:
    assert is_cpu_engine({"SGLANG_USE_CPU_ENGINE": value}) is expected
    assert not is_cpu_engine({})


def test_without_the_cpu_engine_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    _run(DORMANT)


def test_a_kernel_can_be_imported_and_refuses_to_be_called() -> None:
    kernel = sgl_kernel.copy_all_layer_kv_cache_cpu
    with pytest.raises(NotImplementedError, match="copy_all_layer_kv_cache_cpu"):
        kernel(1, 2)


def test_torchvision_can_be_imported_and_refuses_to_be_used() -> None:
    assert "text models" in _run(TORCHVISION)
