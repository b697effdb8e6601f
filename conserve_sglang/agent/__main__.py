"""`python -m conserve_sglang.agent --tier-map FILE --host HOST`: one host's agent."""

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from conserve_sglang.agent.here import part_of
from conserve_sglang.agent.service import AgentService, compose, run
from conserve_sglang.core.errors import ConserveError
from conserve_sglang.telemetry.logs import FORMATS, LEVELS, configure
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.tiermap.secrets import admin_key


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conserve_sglang.agent", description=__doc__)
    parser.add_argument("--tier-map", required=True, metavar="FILE", help="the deployment file")
    parser.add_argument(
        "--host", required=True, metavar="NAME", help="the tier map's name for this machine"
    )
    parser.add_argument(
        "--phase-dir",
        default="out/logs",
        metavar="DIR",
        help="where this host's workers write their phase logs; default: out/logs",
    )
    parser.add_argument("--log-level", type=str.lower, choices=LEVELS, default="info")
    parser.add_argument("--log-format", choices=FORMATS, default="text")
    return parser.parse_args(argv)


def shown_as_the_driver_counts() -> None:
    """Forget what CUDA is shown in this shell: the tier map's GPUs are the driver's."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"


async def _serve(arguments: argparse.Namespace) -> None:
    tier_map = load_tier_map(Path(arguments.tier_map))
    here = part_of(tier_map, arguments.host, Path(arguments.phase_dir))
    key = admin_key(tier_map.router)
    service = AgentService(here, compose(here, is_gated=key is not None), admin_key=key)
    loop = asyncio.get_running_loop()
    told_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told_to_stop.set)
    await run(service, told_to_stop)


def main(argv: list[str] | None = None) -> int:
    """Run; 0 after an orderly stop, 2 for what is wrong with the tier map, the port or a meter."""
    arguments = _arguments(argv)
    shown_as_the_driver_counts()
    configure(arguments.log_level, arguments.log_format)
    try:
        asyncio.run(_serve(arguments))
    except ConserveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
