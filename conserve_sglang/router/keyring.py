"""Whose a request is, by the API key it brings along."""

import hmac
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from conserve_sglang.core.tenant import DEFAULT_TENANT, Tenant
from conserve_sglang.core.tier import AuthSettings
from conserve_sglang.router.problem import Problem
from conserve_sglang.tiermap.keys import TenantKeys, key_digest, load_keys
from conserve_sglang.workers.upstream import Headers

CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key"})
"""Headers that carry keys: they end at the router when it asks for keys, or has the workers'."""

_CHALLENGE = "Bearer"
_MISSING = Problem(
    status=401,
    code="invalid_api_key",
    message="This request has no API key. Send it as Authorization: Bearer KEY, or as x-api-key.",
    challenge=_CHALLENGE,
)
_WRONG = Problem(
    status=401,
    code="invalid_api_key",
    message="This API key is not valid here. Ask who runs this router for another one.",
    challenge=_CHALLENGE,
)
_TWO = Problem(
    status=401,
    code="invalid_api_key",
    message="This request has two different API keys. Send one.",
    challenge=_CHALLENGE,
)


class Keyring:
    """The tenants by their keys. Immutable: other keys are another keyring."""

    def __init__(self, entries: Iterable[TenantKeys]) -> None:
        # Looked up by a keyed hash of the key's hash, so that the time a look-up takes says
        # nothing about the keys there are; compared in constant time besides.
        entries = tuple(entries)
        self.weights = {each.tenant.tenant_id: each.tenant.weight for each in entries}
        self._blind = os.urandom(32)
        self._entries = {
            self._blinded(digest): (digest, entry.tenant)
            for entry in entries
            for digest in entry.digests
        }

    def _blinded(self, digest: bytes) -> bytes:
        return blake2b(digest, key=self._blind, digest_size=16).digest()

    def tenant_of(self, headers: Headers) -> Tenant | Problem:
        """The tenant a request's key belongs to, or why it is not let in."""
        keys = set(_keys_in(headers))
        if len(keys) != 1:
            return _TWO if keys else _MISSING
        digest = key_digest(keys.pop())
        known, tenant = self._entries.get(self._blinded(digest), (b"", DEFAULT_TENANT))
        return tenant if hmac.compare_digest(known, digest) else _WRONG


def _keys_in(headers: Headers) -> Iterable[bytes]:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer" and key.strip():
                yield key.strip()
        elif name == b"x-api-key" and value.strip():
            yield value.strip()


def read_keyring(auth: AuthSettings) -> Keyring | None:
    """The keyring of the key file as it is now; None if there is none."""
    return None if auth.keys_file is None else Keyring(load_keys(Path(auth.keys_file)))
