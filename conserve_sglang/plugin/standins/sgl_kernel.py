"""sgl_kernel, as far as a CPU without AMX needs it: every name can be imported, none called."""

from collections.abc import Callable
from typing import NoReturn

__path__: list[str] = []  # a package, so that `import sgl_kernel.x` fails as a missing module


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def not_here(*_args: object, **_kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"sgl_kernel.{name} was called, and this CPU has only a stand-in for sgl_kernel; "
            "serve with --attention-backend torch_native --sampling-backend pytorch"
        )

    not_here.__name__ = name
    return not_here
