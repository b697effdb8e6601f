"""torchvision, as far as a text model on a CPU needs it: every name can be imported, none used.

SGLang and transformers import a few names of torchvision on their way to any model. The PyPI
build of torchvision cannot be loaded beside a CPU build of torch, and no text model calls it.
"""

import enum
import sys
from types import ModuleType

__version__ = "0.28.0"
__path__: list[str] = []


class InterpolationMode(enum.Enum):
    """The members transformers refers to while it is being imported."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class _Refusal:
    def __init__(self, *_args: object, **_kwargs: object) -> None:
        raise NotImplementedError(
            f"torchvision.{type(self).__name__} was called, and there is only a stand-in for "
            "torchvision here: on a CPU this package serves text models"
        )


class _Submodule(ModuleType):
    InterpolationMode = InterpolationMode

    def __init__(self, name: str) -> None:
        super().__init__(name, __doc__)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> type[_Refusal]:
        return _refusal(name)


def _refusal(name: str) -> type[_Refusal]:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (_Refusal,), {})


def _add(parent: ModuleType, *path: str) -> None:
    for name in path:
        child = _Submodule(f"{parent.__name__}.{name}")
        setattr(parent, name, child)
        sys.modules[child.__name__] = child
        parent = child


def __getattr__(name: str) -> type[_Refusal]:
    return _refusal(name)


_here = sys.modules[__name__]
_add(_here, "transforms", "functional")
_add(sys.modules[f"{__name__}.transforms"], "v2", "functional")
_add(_here, "io")
