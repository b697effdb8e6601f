"""TLS to a server on whose certificate file we can look: it must show that very certificate.

Names and authorities do not matter then: the router's certificate is for its clients, and rarely
for the address its operator's port listens on.
"""

import ssl
from pathlib import Path

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


def any_certificate() -> ssl.SSLContext:
    """Connects whatever is shown; for what everybody may hear, or to be checked by `is_shown`."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_shown(cert_file: str, shown: bytes | None) -> bool:
    """Whether a server has shown (in DER form) the first certificate of a PEM file."""
    pem = Path(cert_file).read_text(encoding="ascii")
    start = pem.index(_BEGIN)
    return shown == ssl.PEM_cert_to_DER_cert(pem[start : pem.index(_END, start) + len(_END)])
