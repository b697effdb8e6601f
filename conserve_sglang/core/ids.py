"""Names of the things the scheduler talks about."""

from typing import NewType

ConversationId = NewType("ConversationId", str)
"""A user's task of many turns. Opaque; chosen by the router or taken from a client's header."""

TurnId = NewType("TurnId", int)
"""One inference request of a conversation. Unique within a router's life."""

WorkerId = NewType("WorkerId", str)
"""One SGLang server behind the router, by its name in the tier map."""

TierName = NewType("TierName", str)
"""A class of GPUs with its knobs, by its name in the tier map."""

TenantId = NewType("TenantId", str)
"""Whose conversations they are, by the name in the key file."""
