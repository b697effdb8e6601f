"""`python -m conserve_sglang.router --tier-map FILE`: run the router until it is told to stop."""

import argparse
import asyncio
import logging
import signal
import sys
from dataclasses import replace
from pathlib import Path

import uvloop

from conserve_sglang.core.errors import ConserveError
from conserve_sglang.core.tier import TierMap
from conserve_sglang.router.processes.service import ManyProcesses
from conserve_sglang.router.service import BrainService, RouterService
from conserve_sglang.router.tuning import raise_descriptor_limit, settle_memory
from conserve_sglang.state import open_store
from conserve_sglang.telemetry.logs import FORMATS, LEVELS, configure, told
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.tiermap.secrets import redis_password

logger = logging.getLogger("conserve_sglang.router")  # not that of `__main__`


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m conserve_sglang.router", description=__doc__)
    parser.add_argument("--tier-map", required=True, metavar="FILE", help="the deployment file")
    parser.add_argument(
        "--log-level", type=str.lower, choices=LEVELS, default="info", help="default: info"
    )
    parser.add_argument("--log-format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument(
        "--access-log", action="store_true", help="log a line for each request answered"
    )
    parser.add_argument(
        "--workers",
        type=_processes,
        metavar="N",
        help="processes that serve clients, beside the one that decides if N > 1;"
        " default: router.processes of the tier map",
    )
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


def _processes(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _service(tier_map: TierMap, arguments: argparse.Namespace) -> BrainService:
    store = open_store(tier_map, redis_password(tier_map.router))
    trusts = arguments.trust_decoders
    if tier_map.router.processes == 1:
        return RouterService(tier_map, trusts_decoders=trusts, store=store)
    logs = ["--log-level", arguments.log_level, "--log-format", arguments.log_format]
    if arguments.access_log:
        logs.append("--access-log")
    return ManyProcesses(tier_map, trusts_decoders=trusts, store=store, front_arguments=logs)


async def _run(tier_map: TierMap, arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    told_to_stop = asyncio.Event()

    def stop() -> None:
        if told_to_stop.is_set():
            logger.info("told again: open answers are not waited for")
            service.hurry()
        told_to_stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    service = _service(tier_map, arguments)
    loop.add_signal_handler(signal.SIGHUP, service.reload_keys)
    await service.start()
    settle_memory()
    await told_to_stop.wait()
    drain_s = tier_map.router.drain_s
    logger.info(
        "stopping: open answers have %g s", drain_s, extra=told("router_stopping", drain_s=drain_s)
    )
    await service.stop()
    logger.info("stopped", extra=told("router_stopped"))


def main(argv: list[str] | None = None) -> int:
    """Run; 0 after an orderly stop, 2 for a bad tier map or a port in use."""
    arguments = _arguments(argv)
    configure(arguments.log_level, arguments.log_format, with_access_log=arguments.access_log)
    try:
        tier_map = load_tier_map(Path(arguments.tier_map))
        if arguments.no_state:
            tier_map = replace(tier_map, router=replace(tier_map.router, state=None))
        if arguments.workers is not None:
            router = replace(tier_map.router, processes=arguments.workers)
            tier_map = replace(tier_map, router=router)
        raise_descriptor_limit()
        uvloop.run(_run(tier_map, arguments))
    except ConserveError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
