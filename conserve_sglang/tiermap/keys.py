"""The key file: the tenants of a deployment, and the hashes of their API keys.

A key is 256 random bits, so there is nothing to guess and a plain SHA-256 keeps it: slow, salted
hashes are for passwords, which people choose.
"""

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta

from conserve_sglang.core.errors import ConfigError, TierMapError
from conserve_sglang.core.ids import TenantId
from conserve_sglang.core.tenant import Tenant
from conserve_sglang.tiermap.fields import Name
from conserve_sglang.tiermap.strict import explain, read_text, read_yaml

HASH_PREFIX = "sha256:"
MIN_SHOWN_DIGITS = 8
_HEADING = "# Tenants and the hashes of their API keys; written by conserve-sglang keys.\n"
_DIGITS = re.compile(rf"(?:{HASH_PREFIX})?(?P<digits>[0-9a-f]{{{MIN_SHOWN_DIGITS},64}})")
_KeyHash = Annotated[str, Meta(pattern=rf"^{HASH_PREFIX}[0-9a-f]{{64}}$")]


class _TenantFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    weight: Annotated[float, Meta(gt=0, le=1_000_000)] = 1.0
    may_place: bool = False
    keys: tuple[_KeyHash, ...] = ()


class _KeysFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenants: tuple[_TenantFile, ...] = ()


_PARTS: dict[str, type[msgspec.Struct]] = {"": _KeysFile, "tenants[]": _TenantFile}


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantKeys:
    """A tenant, and the SHA-256 digest of each of its keys."""

    tenant: Tenant
    digests: tuple[bytes, ...]


def key_digest(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def load_keys(path: Path) -> tuple[TenantKeys, ...]:
    """Read a key file. Raises TierMapError with the file and the field that is wrong."""
    text = read_text(path)
    mode = path.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TierMapError(
            f"{path}: users other than its owner may write it, and so let anybody in."
            f" Run chmod go-w {path}"
        )
    try:
        decoded = msgspec.convert(read_yaml(text, str(path)) or {}, _KeysFile)
    except msgspec.ValidationError as error:
        raise TierMapError(f"{path}: {explain(str(error), _PARTS)}") from error
    if found := list(_problems(decoded)):
        raise TierMapError("\n".join(f"{path}: {problem}" for problem in found))
    return tuple(_to_domain(tenant) for tenant in decoded.tenants)


def _problems(decoded: _KeysFile) -> Iterator[str]:
    name_at: dict[str, int] = {}
    key_at: dict[str, str] = {}
    for index, tenant in enumerate(decoded.tenants):
        if tenant.name in name_at:
            other = name_at[tenant.name]
            yield f"tenants[{index}].name: {tenant.name!r} is tenants[{other}]'s already"
        name_at.setdefault(tenant.name, index)
        for number, key in enumerate(tenant.keys):
            here = f"tenants[{index}].keys[{number}]"
            if key in key_at:
                yield f"{here}: the same key as {key_at[key]}; a key belongs to one tenant"
            key_at.setdefault(key, here)


def _to_domain(tenant: _TenantFile) -> TenantKeys:
    return TenantKeys(
        tenant=Tenant(
            tenant_id=TenantId(tenant.name), weight=tenant.weight, may_place=tenant.may_place
        ),
        digests=tuple(bytes.fromhex(key.removeprefix(HASH_PREFIX)) for key in tenant.keys),
    )


def new_key(
    path: Path, name: str, *, weight: float | None = None, may_place: bool | None = None
) -> str:
    """Make a key for a tenant, write its hash into the file, and return the key: only here.

    `weight` and `may_place` are set if they are given.
    """
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError as error:
        raise TierMapError(
            f"{name!r} cannot name a tenant: use at most 48 small letters, digits and hyphens,"
            " the first and the last of them no hyphen"
        ) from error
    key = "csk-" + secrets.token_urlsafe(32)
    known = {entry.tenant.tenant_id: entry for entry in load_keys(path)} if path.exists() else {}
    tenant_id = TenantId(name)
    entry = known.get(tenant_id, TenantKeys(tenant=Tenant(tenant_id=tenant_id), digests=()))
    tenant = entry.tenant if weight is None else replace(entry.tenant, weight=weight)
    tenant = tenant if may_place is None else replace(tenant, may_place=may_place)
    digests = (*entry.digests, key_digest(key.encode()))
    known[tenant_id] = TenantKeys(tenant=tenant, digests=digests)
    _write(path, tuple(known.values()))
    return key


def revoke_key(path: Path, shown: str) -> TenantId:
    """Take the key out whose hash begins with `shown`; whose it was."""
    match = _DIGITS.fullmatch(shown)
    if match is None:
        raise ConfigError(
            f"a key is named by the first {MIN_SHOWN_DIGITS} or more hexadecimal digits of its"
            " hash; conserve-sglang keys list shows them"
        )
    entries = load_keys(path)
    digits = match["digits"]
    found = [
        (entry.tenant.tenant_id, digest)
        for entry in entries
        for digest in entry.digests
        if digest.hex().startswith(digits)
    ]
    if len(found) != 1:
        what = "no key" if not found else f"{len(found)} keys"
        raise ConfigError(f"{path}: {what} whose hash begins with {digits}; see keys list")
    [(tenant_id, revoked)] = found
    kept = tuple(
        replace(entry, digests=tuple(digest for digest in entry.digests if digest != revoked))
        for entry in entries
    )
    _write(path, kept)
    return tenant_id


def _write(path: Path, entries: tuple[TenantKeys, ...]) -> None:
    """Replace the file at once; what does not read back is not written.

    A new file is its owner's alone; one that is there keeps its mode and, where root writes it, its
    owner, who reads it again.
    """
    tenants = [
        {
            "name": str(entry.tenant.tenant_id),
            "weight": entry.tenant.weight,
            "may_place": entry.tenant.may_place,
            "keys": [HASH_PREFIX + digest.hex() for digest in entry.digests],
        }
        for entry in entries
    ]
    text = _HEADING + yaml.safe_dump({"tenants": tenants}, sort_keys=False, width=200)
    path = path.resolve()  # a link stays a link
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        before = path.stat() if path.exists() else None
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if before is not None:
                    if os.geteuid() == 0:
                        os.fchown(handle, before.st_uid, before.st_gid)
                    os.fchmod(handle, stat.S_IMODE(before.st_mode))
                os.fsync(handle)
            try:
                load_keys(unfinished)
            except TierMapError as error:
                raise TierMapError(str(error).replace(str(unfinished), str(path))) from error
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
