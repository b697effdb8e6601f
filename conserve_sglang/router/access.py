"""The router's access to its workers, from the tier map and the environment."""

from conserve_sglang.core.tier import RouterSettings
from conserve_sglang.router.tls import worker_context
from conserve_sglang.tiermap.secrets import worker_api_key
from conserve_sglang.workers.access import WorkerAccess


def worker_access(settings: RouterSettings) -> WorkerAccess:
    """Raises ConfigError where a key or a file is missing."""
    tls = None if settings.worker_tls is None else worker_context(settings.worker_tls)
    return WorkerAccess(api_key=worker_api_key(settings), tls=tls)
