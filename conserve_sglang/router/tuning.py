"""What each process of the router sets for itself when it starts."""

import gc
import inspect
import resource
from contextlib import suppress

from conserve_sglang.dispatch import Dispatcher

# A turn leaves next to no cycles behind, and a full collection walks every conversation.
GC_THRESHOLDS = (50_000, 20, 100)


def is_compiled() -> bool:
    """Whether the modules a turn runs through were compiled when the package was installed."""
    return not inspect.isfunction(Dispatcher.handle)


def raise_descriptor_limit() -> None:
    """A turn holds up to three connections, and the usual soft limit is 1024 descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def settle_memory() -> None:
    """What is there now stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
