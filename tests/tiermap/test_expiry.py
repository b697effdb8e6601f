"""When a certificate ends, against what a library that reads all of it says."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from conserve_sglang.tiermap.expiry import expires_at_s
from tests.fakes.certificates import Authority

ENDS = (
    datetime(1999, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
    datetime(2026, 2, 28, tzinfo=timezone.utc),
    datetime(2049, 12, 31, 23, 59, 59, tzinfo=timezone.utc),
    datetime(2050, 1, 1, tzinfo=timezone.utc),  # told in another form from here on
    datetime(2999, 6, 1, 12, 30, tzinfo=timezone.utc),
)


def a_certificate(end: datetime, name: str) -> bytes:
    """Signed by itself, with a name of any length: its lengths take one, two and three bytes."""
    key = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:60])])
    others = x509.SubjectAlternativeName([x509.DNSName(name)])
    builder = (
        x509.CertificateBuilder(called, called, key.public_key(), x509.random_serial_number())
        .not_valid_before(end - timedelta(days=1))
        .not_valid_after(end)
        .add_extension(others, critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("length", [1, 100, 400, 70_000])
def test_end_is_read_as_it_was_written(tmp_path: Path, end: datetime, length: int) -> None:
    file = tmp_path / "cert.pem"
    file.write_bytes(a_certificate(end, "a" * length))
    assert expires_at_s(str(file)) == end.timestamp()


def test_the_first_of_a_chain_counts_whatever_stands_before_it(tmp_path: Path) -> None:
    file, (first, second) = tmp_path / "chain.pem", ENDS[1:3]
    file.write_bytes("Größe\n".encode() + a_certificate(first, "a") + a_certificate(second, "b"))
    assert expires_at_s(str(file)) == first.timestamp()


def test_authority_of_the_tests_is_read(tmp_path: Path) -> None:
    file = Authority(tmp_path).file
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    assert expires_at_s(str(file)) == certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nMIIBMIIB\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    ],
)
def test_what_is_no_certificate_has_no_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "no.pem").write_text(text)
    assert expires_at_s(str(tmp_path / "no.pem")) is None
    assert expires_at_s(str(tmp_path / "missing.pem")) is None
