"""When a certificate ends: the one thing that is read of it here, so by hand (RFC 5280, 4.1)."""

import re
import ssl
from datetime import datetime, timezone
from pathlib import Path

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18
_LONG = 0x80  # of a length: it stands in so many bytes behind this one
_CENTURY_BEGINS = 50  # years of two digits from here on are of the 20th


def expires_at_s(cert_file: str) -> float | None:
    """Until when the first certificate of a PEM file is valid, in seconds since 1970; None if the
    file holds none that can be read."""
    try:
        first = _PEM.search(Path(cert_file).read_text(encoding="latin-1"))
        return None if first is None else _not_after(ssl.PEM_cert_to_DER_cert(first[0]))
    except (OSError, ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    """`Certificate` begins with `TBSCertificate`: version if it is told, serial number, algorithm,
    issuer, validity."""
    _, certificate, _ = _item(der, 0)
    _, at, _ = _item(der, certificate)
    for _ in range(4 if der[at] == _VERSION else 3):
        _, _, at = _item(der, at)
    _, not_before, _ = _item(der, at)
    _, _, not_after = _item(der, not_before)
    tag, begin, end = _item(der, not_after)
    return _time(tag, der[begin:end].decode("ascii"))


def _item(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of the item at `at`, where its content begins, and where it ends."""
    tag, length, begin = der[at], der[at + 1], at + 2
    if length & _LONG:
        size = length & ~_LONG
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    return tag, begin, begin + length


def _time(tag: int, text: str) -> float:
    if tag == _UTC_TIME:
        text = ("19" if int(text[:2]) >= _CENTURY_BEGINS else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"no time: {text!r}")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
