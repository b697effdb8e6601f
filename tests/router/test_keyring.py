"""Whose key it is: found by its hash, in each place where clients put keys."""

import hmac

import pytest

from conserve_sglang.core.ids import TenantId
from conserve_sglang.core.tenant import Tenant
from conserve_sglang.router.keyring import Keyring
from conserve_sglang.router.problem import Problem
from conserve_sglang.tiermap.keys import TenantKeys, key_digest
from conserve_sglang.workers.upstream import Headers

A, B = (Tenant(tenant_id=TenantId(name)) for name in "ab")
KEYRING = Keyring(
    [
        TenantKeys(tenant=A, digests=(key_digest(b"key-a"), key_digest(b"key-a2"))),
        TenantKeys(tenant=B, digests=(key_digest(b"key-b"),)),
    ]
)


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ([(b"authorization", b"Bearer key-a")], A),
        ([(b"authorization", b"bearer   key-a2 ")], A),
        ([(b"x-api-key", b"key-b")], B),
        ([(b"x-api-key", b"key-b"), (b"authorization", b"Bearer key-b")], B),
        ([(b"accept", b"*/*"), (b"authorization", b"Basic key-a"), (b"x-api-key", b"key-b")], B),
    ],
)
def test_key_is_found_wherever_clients_put_it(headers: Headers, tenant: Tenant) -> None:
    assert KEYRING.tenant_of(headers) is tenant


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ([], "has no API key"),
        ([(b"authorization", b"Bearer ")], "has no API key"),
        ([(b"authorization", b"key-a")], "has no API key"),
        ([(b"authorization", b"Basic key-a")], "has no API key"),
        ([(b"authorization", b"Bearer key-c")], "is not valid"),
        ([(b"authorization", b"Bearer key-a b")], "is not valid"),
        ([(b"authorization", b"Bearer \xff\x00")], "is not valid"),
        ([(b"x-api-key", key_digest(b"key-a").hex().encode())], "is not valid"),
        ([(b"x-api-key", b"key-a"), (b"authorization", b"Bearer key-b")], "two different"),
        ([(b"x-api-key", b"key-a"), (b"x-api-key", b"key-b")], "two different"),
    ],
)
def test_anything_else_is_a_401_that_repeats_no_key(headers: Headers, says: str) -> None:
    verdict = KEYRING.tenant_of(headers)
    assert isinstance(verdict, Problem)
    assert verdict.status == 401
    assert says in verdict.message
    assert b"key-" not in verdict.to_json()
    assert (b"www-authenticate", b"Bearer") in verdict.headers()


def test_keyring_without_keys_lets_nobody_in() -> None:
    assert isinstance(Keyring([]).tenant_of([(b"x-api-key", b"")]), Problem)
    assert isinstance(Keyring([]).tenant_of([(b"x-api-key", b"key-a")]), Problem)


def test_hashes_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def spy(known: bytes, given: bytes) -> bool:
        compared.append(given)
        return compare(known, given)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    KEYRING.tenant_of([(b"x-api-key", b"key-a")])
    KEYRING.tenant_of([(b"x-api-key", b"key-c")])
    assert compared == [key_digest(b"key-a"), key_digest(b"key-c")]
