"""How workers are reached beyond their address."""

import ssl
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerAccess:
    """The API key the workers ask for, and the TLS they speak; None where they do not."""

    api_key: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None


PLAIN = WorkerAccess()
"""Plain HTTP, and nobody asks for a key."""
