"""TLS on both sides of the router: its own certificate, and what it asks of the workers'."""

import logging
import ssl
import time

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.tier import TlsSettings, WorkerTlsSettings
from conserve_sglang.tiermap.expiry import expires_at_s
from conserve_sglang.tiermap.pem import load_certificate, trusting

logger = logging.getLogger(__name__)

SOON_S = 14 * 86_400.0  # as the alert rule has it


class ServerTls:
    """The router's certificate. `context` is for its listeners; `expires_at_s`, in seconds since
    1970, when it ends, as far as that can be read."""

    def __init__(self, settings: TlsSettings) -> None:
        self._settings = settings
        self.context = self._new_context()
        self.expires_at_s = expires_at_s(settings.cert_file)

    def reload(self) -> None:
        """Read the files again, for connections from now on. Raises ConfigError."""
        self._new_context()  # one that is wrong must not touch the one in use
        load_certificate(self.context, self._settings)
        self.expires_at_s = expires_at_s(self._settings.cert_file)

    def warn_if_it_ends(self, now_s: float) -> None:
        """Say so if the certificate ends soon, or has; `now_s` in seconds since 1970."""
        if self.expires_at_s is not None and self.expires_at_s - now_s < SOON_S:
            until = time.strftime("%Y-%m-%d %H:%M", time.gmtime(self.expires_at_s))
            logger.warning(
                "the certificate %s is valid until %s UTC. Renew it, and send SIGHUP",
                self._settings.cert_file,
                until,
            )

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
