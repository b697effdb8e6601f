"""What a tier map names and does not hold, looked for on this machine: files and variables.

Only reads, and asks nothing over a network. Each problem is "field: what; what to do".
"""

import importlib.util
import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import (
    RouterSettings,
    StateSettings,
    Tier,
    TierMap,
    TlsSettings,
    WorkerPlan,
)
from conserve_sglang.tiermap.keys import load_keys
from conserve_sglang.tiermap.pem import load_certificate, see, trusting
from conserve_sglang.tiermap.secrets import admin_key, redis_password, worker_api_key

_SSL_FLAGS = ("ssl-certfile", "ssl-keyfile", "ssl-ca-certs")


def router_problems(tier_map: TierMap, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """What the router of a tier map would miss here."""
    settings = tier_map.router
    yield from _keys(settings, environ)
    yield from _raised(partial(redis_password, settings, environ))
    if settings.auth.keys_file is not None:
        yield from _key_file(settings.auth.keys_file)
    tls, worker_tls = settings.tls, settings.worker_tls
    if tls is not None:
        yield from _certificate(tls)
    if worker_tls is not None:
        yield from _raised(partial(trusting, worker_tls.ca_file))
    if settings.state is not None:
        yield from _state(settings.state)
    if settings.observe.otlp_endpoint is not None:
        yield from _package("router.observe.otlp_endpoint", "opentelemetry", "otel")
    log = None if tier_map.energy is None else tier_map.energy.control_log
    if log is not None and tier_map.has_budget and not Path(log).parent.is_dir():
        yield f"energy.control_log: there is no folder {Path(log).parent}. Make it"


def worker_problems(
    tier_map: TierMap, workers: Iterable[WorkerPlan], environ: Mapping[str, str] = os.environ
) -> Iterator[str]:
    """What these workers of a tier map, and who launches them, would miss here."""
    yield from _keys(tier_map.router, environ)
    yield from model_problems(tier_map)
    tiers = {worker.tier for worker in workers}
    for index, tier in enumerate(tier_map.tiers):
        if tier.name in tiers:
            yield from _tls_files(f"tiers[{index}].sglang_flags", tier)


def model_problems(tier_map: TierMap) -> Iterator[str]:
    """A model folder that is none; of a name on the hub nothing is known here."""
    path = Path(tier_map.model.path)
    if path.is_absolute() and not (path / "config.json").is_file():
        yield (
            f"model.path: the model folder {path} has no config.json; put the model there, or"
            " change the field (the tiny model of the CPU map is written by"
            " python -m bench.tiny_model)"
        )


def _keys(settings: RouterSettings, environ: Mapping[str, str]) -> Iterator[str]:
    yield from _raised(partial(worker_api_key, settings, environ))
    yield from _raised(partial(admin_key, settings, environ))


def _raised(check: Callable[[], object]) -> Iterator[str]:
    try:
        check()
    except ConfigError as error:
        yield str(error)


def _certificate(tls: TlsSettings) -> Iterator[str]:
    unread = [
        *_raised(partial(see, "router.tls.cert_file", tls.cert_file)),
        *_raised(partial(see, "router.tls.key_file", tls.key_file)),
    ]
    yield from unread
    if not unread:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        yield from _raised(partial(load_certificate, context, tls))


def _key_file(path: str) -> Iterator[str]:
    field = "router.auth.keys_file"
    if not Path(path).exists():
        yield (
            f"{field}: there is no {path}. Write it with conserve-sglang keys new --tenant NAME"
            f" --file {path}"
        )
        return
    try:
        load_keys(Path(path))
    except ConfigError as error:
        for line in str(error).splitlines():
            yield f"{field}: {line}"


def _state(state: StateSettings) -> Iterator[str]:
    if state.redis is not None:
        yield from _package("router.state.redis", "redis", "redis")
    if state.path is None:
        return
    there = next(each for each in (Path(state.path), *Path(state.path).parents) if each.exists())
    if there == Path(state.path):
        if there.is_dir():
            yield f"router.state.path: {there} is a folder. Name a file in it"
        elif not os.access(there, os.R_OK | os.W_OK):
            yield f"router.state.path: {there} is not this user's to write. Let the router's user"
    elif not os.access(there, os.W_OK) or not there.is_dir():
        yield (
            f"router.state.path: {state.path} cannot be made in {there}. Let the router's user"
            " write there, or change the field"
        )


def _package(field: str, name: str, extra: str) -> Iterator[str]:
    if importlib.util.find_spec(name) is None:
        yield f"{field} needs a package: pip install 'conserve-sglang[{extra}]'"


def _tls_files(where: str, tier: Tier) -> Iterator[str]:
    """Files that SGLang would read; a relative name counts from where it is started."""
    for flag in _SSL_FLAGS:
        path = tier.sglang_flags.get(flag)
        if isinstance(path, str) and Path(path).is_absolute():
            yield from _raised(partial(see, f"{where}.{flag}", path))
