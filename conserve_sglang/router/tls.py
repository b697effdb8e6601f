"""TLS on both sides of the router: its own certificate, and what it asks of the workers'."""

import logging
import ssl

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TlsSettings, WorkerTlsSettings

logger = logging.getLogger(__name__)


class ServerTls:
    """The router's certificate. `context` is for its listeners."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self.context = self._new_context()

    def reload(self) -> None:
        """Read the files again, for connections from now on. Raises ConfigError."""
        self._new_context()  # one that is wrong must not touch the one in use
        self._load(self.context)

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        cert_file, key_file = self._settings.cert_file, self._settings.key_file
        try:
            # An empty passphrase, so that nobody is asked for one on a terminal.
            context.load_cert_chain(cert_file, key_file, password="")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"router.tls: {cert_file} and {key_file} are not a certificate and its key in PEM"
                f" form, without a passphrase: {error}."
            ) from error


def reload_tls(tls: ServerTls | None, listener: str) -> None:
    """Take a new certificate of a listener into use, if it has one; a wrong one changes nothing."""
    if tls is not None:
        try:
            tls.reload()
        except ConfigError as error:
            logger.error("%s: the certificate stays as it is: %s", listener, error)
        else:
            logger.info("%s: the certificate was read again", listener)


def worker_context(settings: WorkerTlsSettings) -> ssl.SSLContext:
    """What connections to workers are made with. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"router.worker_tls.ca_file: {settings.ca_file} holds no certificates in PEM form:"
            f" {error}."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
