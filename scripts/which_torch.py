"""Says which build of torch is installed, without the seconds that importing torch takes."""

import runpy
import sys
from importlib import metadata

version_file = metadata.distribution("torch").locate_file("torch/version.py")
facts = runpy.run_path(str(version_file))
cuda = facts.get("cuda")
sys.stdout.write(
    f"setup: torch {facts['__version__']} ({f'CUDA {cuda}' if cuda else 'CPU'} build)\n"
)
if cuda:
    sys.stdout.write(
        "setup: warning: this is gigabytes larger than needed; it runs on a CPU as well. For the\n"
        "setup: warning: CPU build set TORCH_INDEX to an index or TORCH_WHEELS to a folder\n"
    )
