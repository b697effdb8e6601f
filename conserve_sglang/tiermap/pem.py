"""The certificates and keys that a tier map names, read from their files."""

import ssl
from pathlib import Path

from conserve_sglang.core.errors import ConfigError, clause
from conserve_sglang.core.tier import TlsSettings


def load_certificate(context: ssl.SSLContext, settings: TlsSettings) -> None:
    """Have a context show the router's certificate. Raises ConfigError."""
    for field, path in (("cert_file", settings.cert_file), ("key_file", settings.key_file)):
        see(f"router.tls.{field}", path)
    try:
        # An empty passphrase, so that nobody is asked for one on a terminal.
        context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"router.tls: {settings.cert_file} and {settings.key_file} are not a certificate and"
            f" its key in PEM form, without a passphrase: {clause(error)}."
        ) from error


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """What connections to workers are made with: those whose certificates `ca_file`, or one of the
    system's authorities, has signed. Raises ConfigError."""
    field = "router.worker_tls.ca_file"
    if ca_file is not None:
        see(field, ca_file)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{field}: {ca_file} holds no certificates in PEM form: {clause(error)}."
        ) from error


def see(field: str, path: str) -> None:
    """Raise ConfigError for a file that is not there or may not be read."""
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(
            f"{field}: {path} cannot be read: {error.strerror}. Put it there, readable for who runs"
            " this, or change the field."
        ) from error
