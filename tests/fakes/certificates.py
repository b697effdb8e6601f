"""Certificates made for one test."""

import ssl
from datetime import datetime
from pathlib import Path

import trustme

from conserve_sglang.core.tier import TlsSettings


class Authority:
    """Signs certificates, and is trusted by whoever is given its file."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(
        self, name: str = "router", host: str = "127.0.0.1", until: datetime | None = None
    ) -> TlsSettings:
        """A certificate for a host, and its key, in two files."""
        issued = self._ca.issue_cert(host, not_after=until)
        cert_file, key_file = (self._folder / f"{name}.{kind}.pem" for kind in ("cert", "key"))
        cert_file.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(key_file))
        return TlsSettings(cert_file=str(cert_file), key_file=str(key_file))

    def client(self) -> ssl.SSLContext:
        """What a client connects with that trusts this authority alone."""
        return ssl.create_default_context(cafile=self.file)


def server_context(tls: TlsSettings) -> ssl.SSLContext:
    """What a server of somebody else listens with."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.cert_file, tls.key_file)
    return context
