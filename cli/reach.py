"""The options by which a command finds a running router, the same in all that ask one."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .control_port import ControlPort

_TierMap = Annotated[
    Path | None,
    typer.Option("--tier-map", metavar="FILE", help="Its router, with its key and certificate."),
]
_Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="Instead: the router's control port; by default http://127.0.0.1:30001.",
    ),
]
_KeyEnv = Annotated[
    str | None,
    typer.Option("--key-env", metavar="NAME", help="With --url: variable with the admin key."),
]
_Ca = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        help="With --url: certificate (PEM) of the router, or of who signed it; else the system's.",
    ),
]
_Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="With --url: take any certificate. Whoever answers in its place gets the key.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """Which router is meant, in the words of the command line."""

    tier_map: _TierMap = None
    url: _Url = None
    key_env: _KeyEnv = None
    ca: _Ca = None
    insecure: _Insecure = False

    def control_port(self) -> "ControlPort":
        """Its control port. Raises ConfigError for words that do not fit together."""
        from conserve_sglang.core.errors import ConfigError

        from .control_port import DEFAULT_URL, at_url, of_tier_map

        if self.tier_map is None:
            url = DEFAULT_URL if self.url is None else self.url
            return at_url(url, self.key_env, self.ca, is_insecure=self.insecure)
        given = {"url": self.url, "key-env": self.key_env, "ca": self.ca}
        more = [name for name, value in given.items() if value is not None]
        more += ["insecure"] if self.insecure else []
        if more:
            raise ConfigError(f"--{more[0]}: the tier map says that already; leave one of them out")
        return of_tier_map(self.tier_map)


def reaches_a_router(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options in place of its parameter `reach`."""
    signature = inspect.signature(command)
    own = [each for each in signature.parameters.values() if each.name != "reach"]
    added = [
        inspect.Parameter(
            each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.type
        )
        for each in fields(Reach)
    ]

    @wraps(command)
    def run(**given: Any) -> None:
        reach = Reach(**{each.name: given.pop(each.name) for each in fields(Reach)})
        command(reach=reach, **given)

    parameters = [*own, *added]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run
