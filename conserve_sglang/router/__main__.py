"""`python -m conserve_sglang.router --tier-map FILE`: run the router until it is told to stop."""

import argparse
import asyncio
import gc
import logging
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import uvloop

from conserve_sglang.core.errors import ConserveError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.router.service import RouterService
from conserve_sglang.state import open_store
from conserve_sglang.telemetry.logs import FORMATS, LEVELS, configure
from conserve_sglang.tiermap import load_tier_map

logger = logging.getLogger(__name__)

# A turn leaves next to no cycles behind, and a full collection walks every conversation.
GC_THRESHOLDS = (50_000, 20, 100)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conserve_sglang.router", description=__doc__)
    parser.add_argument("--tier-map", required=True, metavar="FILE", help="the deployment file")
    parser.add_argument(
        "--log-level", type=str.lower, choices=LEVELS, default="info", help="default: info"
    )
    parser.add_argument("--log-format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument("--access-log", action="store_true", help="log one line for each turn")
    parser.add_argument(
        "--trust-decoders",
        action="store_true",
        help="take decoders without looking for the plugin in them (fake workers in benchmarks)",
    )
    parser.add_argument(
        "--no-state",
        action="store_true",
        help="forget conversations at the end, whatever the tier map says",
    )
    return parser.parse_args(argv)


def _raise_descriptor_limit() -> None:
    """A turn holds up to three connections, and the usual soft limit is 1024 descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(tier_map: TierMap, trusts_decoders: bool) -> None:
    loop = asyncio.get_running_loop()
    told_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told_to_stop.set)
    service = RouterService(tier_map, trusts_decoders=trusts_decoders, store=open_store(tier_map))
    if tier_map.router.auth.keys_file is not None:
        loop.add_signal_handler(signal.SIGHUP, service.reload_keys)
    await service.start()
    gc.collect()
    gc.freeze()  # what is there now stays: the collector need not look at it again
    gc.set_threshold(*GC_THRESHOLDS)
    await told_to_stop.wait()
    logger.info("stopping")
    await service.stop()


def main(argv: list[str] | None = None) -> int:
    """Run; 0 after an orderly stop, 2 for a bad tier map or a port in use."""
    arguments = _arguments(argv)
    configure(arguments.log_level, arguments.log_format, with_access_log=arguments.access_log)
    try:
        tier_map = load_tier_map(Path(arguments.tier_map))
        if arguments.no_state:
            tier_map = replace(tier_map, router=replace(tier_map.router, state=None))
        _raise_descriptor_limit()
        uvloop.run(_run(tier_map, arguments.trust_decoders))
    except ConserveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
