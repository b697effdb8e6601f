"""The cures that let SGLang serve on a CPU, where its CUDA-only corners would stop it.

SGLang's own CPU engine needs a build of `sgl_kernel` that PyPI does not offer. A few corners are
rounded here, none of them by editing a file of SGLang:

1. torchvision: a stand-in, because the PyPI build cannot be loaded beside a CPU build of torch.
2. `sgl_kernel`: a stand-in whose functions refuse to be called.
3. `pin_memory`: a CPU build of torch refuses to pin, so the wish is dropped.
4. Mooncake's sender: index lists may not be copied behind a `torch.cuda.Event`.
5. On 0.5.17 alone, grammars: it applies their masks on accelerators only.

1 and 2 go through `sys.path`. A spawned process (scheduler, detokenizer) inherits that of the
launcher before it imports anything, so they hold there too, although the plugin itself is called
only after the imports. The others act in the process that calls.

SGLang 0.5.17 imports torchvision before it calls a plugin at all. There the folder of stand-ins
has to be on the path already, by PYTHONPATH or a .pth file, as `make test-compat` arranges.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from importlib import metadata
from pathlib import Path
from typing import Any

ENGINE_SWITCH = "SGLANG_USE_CPU_ENGINE"
EARLY_SEND_SWITCH = "SGLANG_DISAGG_PREFILL_EARLY_SEND_CACHED_PREFIX"

_STANDINS = Path(__file__).with_name("standins")
_SCHEDULER = "sglang.srt.managers.scheduler"
_SENDER_MODULE = "sglang.srt.disaggregation.mooncake.conn"
_GRAMMAR_MODULE = "sglang.srt.constrained.xgrammar_backend"
_WITHOUT_CPU_GRAMMARS = "0.5.17"
_PINNING_FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "empty_like", "zeros_like")


def is_cpu_engine(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was told to serve on the CPU, read as SGLang reads it."""
    return environ.get(ENGINE_SWITCH, "0").lower() in {"1", "true", "yes", "y"}


def apply_cpu_cures() -> None:
    """Make SGLang's CPU engine work in this process and in those it spawns; safe to repeat."""
    if not is_cpu_engine():
        return
    # The early send of a cached prefix records a torch.cuda.Event (on by default in 0.5.17).
    os.environ.setdefault(EARLY_SEND_SWITCH, "0")
    _offer_standins()
    _drop_pin_memory()
    if _SCHEDULER in sys.modules:
        _send_indices_from_host()
        if metadata.version("sglang") == _WITHOUT_CPU_GRAMMARS:
            _mask_logits_on_cpu()


def _offer_standins() -> None:
    """Put the stand-ins on the path: behind real packages, unless those cannot be loaded."""
    folder = str(_STANDINS)
    if folder in sys.path:
        return
    if _is_real_torchvision_unusable():
        sys.path.insert(0, folder)
    else:
        sys.path.append(folder)


def _is_real_torchvision_unusable() -> bool:
    try:
        real = metadata.version("torchvision")
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    return "+cpu" in torch and "+cpu" not in real


def _drop_pin_memory() -> None:
    """Let torch's factories ignore `pin_memory` where there is no device to pin for."""
    import torch

    if torch.cuda.is_available() or hasattr(torch.empty, "__wrapped__"):
        return
    for name in _PINNING_FACTORIES:
        setattr(torch, name, _without_pin_memory(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda tensor, *_args, **_kwargs: tensor


def _without_pin_memory(factory: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(factory)
    def unpinned(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return unpinned


def _send_indices_from_host() -> None:
    """Turn off Mooncake's asynchronous copy of KV indices; 0.5.17 has no such attribute."""
    try:
        sender = importlib.import_module(_SENDER_MODULE).MooncakeKVSender
    except ImportError:  # no transfer engine: a server without disaggregation does not need it
        return
    if hasattr(sender, "supports_host_tensor_indices"):
        sender.supports_host_tensor_indices = False


def _mask_logits_on_cpu() -> None:
    """Apply a grammar's mask by xgrammar's own CPU kernel, as 0.5.23 does."""
    from xgrammar import apply_token_bitmask_inplace

    def apply_vocab_mask(_grammar: Any, logits: Any, vocab_mask: Any) -> None:
        apply_token_bitmask_inplace(logits, vocab_mask, backend="cpu")

    importlib.import_module(_GRAMMAR_MODULE).XGrammarGrammar.apply_vocab_mask = apply_vocab_mask
