"""Keeps the KV of tenants apart: what workers are told in `extra_key` with every turn.

SGLang's radix tree finds a prefix for whoever sends it, so a tenant could tell from `cached_tokens`
and from the time to the first token what others have sent. Prefixes under two extra keys are two
prefixes to it. A salt is a keyed hash of its tenant, under the router's secret: the same at all
replicas and in the next life, and nobody else can make it.

`extra_key` is the field that SGLang 0.5.17 and 0.5.23 read at all three endpoints: of 0.5.17,
`/generate` knows no `cache_salt`, and the others put the two together to one `extra_key`.
"""

from hashlib import blake2b

from conserve_sglang.core.ids import TenantId

SALT_FIELDS = ("cache_salt", "extra_key")
"""By which clients of SGLang keep prefixes apart. With keys, they separate within a tenant."""


class Salt:
    """One tenant's: `member` is the JSON member of its turns, which ends with a comma."""

    __slots__ = ("_hash", "member")

    def __init__(self, hashed: blake2b) -> None:
        self._hash = hashed
        self.member = _member(hashed)

    def member_with(self, said: tuple[str, ...]) -> bytes:
        """The member for a client's own values of `SALT_FIELDS`; an empty one says nothing."""
        if not any(said):
            return self.member
        hashed = self._hash.copy()
        for each in said:
            value = each.encode("utf-8", "surrogatepass")
            hashed.update(b"%d:%b" % (len(value), value))
        return _member(hashed)


class Salts:
    """The salts of tenants, under a secret of up to 64 bytes; each is made once."""

    def __init__(self, secret: bytes) -> None:
        self._hash = blake2b(digest_size=16, key=secret, person=b"tenant's salt")
        self._known: dict[TenantId, Salt] = {}

    def of(self, tenant: TenantId) -> Salt:
        """A tenant's salt."""
        salt = self._known.get(tenant)
        if salt is None:
            hashed = self._hash.copy()
            hashed.update(b"%b\0" % tenant.encode())  # no tenant's name has a zero byte
            salt = self._known[tenant] = Salt(hashed)
        return salt


def _member(hashed: blake2b) -> bytes:
    return b'"extra_key":"%b",' % hashed.hexdigest().encode()
