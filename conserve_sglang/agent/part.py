"""What the agent is composed of: each part has its endpoints, its health and its own work."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from starlette.routing import Route


class Part(Protocol):
    """One concern of the agent. All of its methods run in the agent's event loop.

    A new one goes into the list in `agent/service.py` (`compose`).
    """

    name: str

    def routes(self) -> Sequence[Route]:
        """Its endpoints, behind the key if there is one."""
        ...

    def health(self) -> Mapping[str, Any]:
        """What `GET /health` tells of it. A member `problem` makes the agent's status degraded."""
        ...

    async def start(self) -> None:
        """Begin; raises ConserveError when that cannot be, and the agent does not start."""
        ...

    async def stop(self) -> None:
        """Leave everything as it was found. Called once, also after a failed start."""
        ...
