"""TLS on both sides of the router: its own certificate, and what it asks of the workers'."""

import logging
import ssl

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TlsSettings, WorkerTlsSettings
from conserve_sglang.tiermap.pem import load_certificate, trusting

logger = logging.getLogger(__name__)


class ServerTls:
    """The router's certificate. `context` is for its listeners."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self.context = self._new_context()

    def reload(self) -> None:
        """Read the files again, for connections from now on. Raises ConfigError."""
        self._new_context()  # one that is wrong must not touch the one in use
        load_certificate(self.context, self._settings)

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        load_certificate(context, self._settings)
        return context


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
    context = trusting(settings.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
