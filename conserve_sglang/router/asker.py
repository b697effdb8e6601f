"""What a client's connection tells whoever answers it."""

from typing import Protocol


class Asker(Protocol):
    """Whoever answers a request hears what becomes of its client."""

    def client_gone(self) -> None:
        """The client left; nothing more can be written."""
        ...

    def client_slow(self) -> None:
        """The client does not keep up: stop producing."""
        ...

    def client_ready(self) -> None:
        """Go on producing."""
        ...
