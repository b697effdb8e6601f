"""`python -m bench.fuzz.guided TARGET`: one target, its inputs steered by coverage (atheris).

Atheris is not among this project's requirements: `pip install atheris` first.
"""

import argparse
import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed; run: pip install atheris")

with atheris.instrument_imports(include=["conserve_sglang"]):
    from bench.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until `--inputs` are through; libFuzzer stops at the first failure and shows it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    options = parser.parse_args()
    read, seeds = TARGETS[options.target]
    corpus = Path(tempfile.mkdtemp(prefix="fuzz-"))
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def one_input(data: bytes) -> None:
        read(data)

    limits = ["-max_len=4096", "-timeout=2", "-rss_limit_mb=1024", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), f"-runs={options.inputs}", *limits], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
