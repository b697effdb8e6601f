"""Asks a running router through its control port."""

import http.client
import json
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from conserve_sglang.core.errors import ConfigError, ConserveError
from conserve_sglang.launcher.pinned import any_certificate, is_shown
from conserve_sglang.tiermap import load_tier_map
from conserve_sglang.tiermap.secrets import admin_key

DEFAULT_URL = "http://127.0.0.1:30001"
_ANSWER_S = 30.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class ControlPort:
    """A router's control port, at a URL.

    `tls` is what an https one is connected with; if `cert_file` is given it must show that very
    certificate. `advice` is what to look at if nobody answers.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        advice: str,
        tls: ssl.SSLContext | None = None,
        cert_file: str | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._parts = urlsplit(self.url)
        self._key = key
        self._advice = advice
        self._tls = tls
        self._cert_file = cert_file

    @property
    def has_key(self) -> bool:
        """Whether it is asked with a key."""
        return self._key is not None

    def ask(
        self, method: str, path: str, *, body: Any = None, waits_s: float = 0.0, **query: Any
    ) -> tuple[int, Any]:
        """Status and decoded body; ConfigError with the router's words when it refuses."""
        if query:
            path += "?" + urlencode(query)
        raw = None if body is None else json.dumps(body).encode()
        status, data = self.exchange(method, path, raw, waits_s + _ANSWER_S)
        if status >= 400:
            raise ConfigError(_words(data) or f"the router answered {status} to {method} {path}")
        try:
            return status, json.loads(data)
        except ValueError as error:
            raise ConserveError(
                f"what {self.url} answers is not a router's. {self._advice}"
            ) from error

    def exchange(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        """Status and body of an answer, whatever it says; ConserveError when there is none."""
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        connection = self._connection(timeout_s)
        try:
            connection.connect()
            self._see_certificate(connection)
            connection.request(method, self._parts.path + path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ssl.SSLCertVerificationError as error:
            raise ConserveError(
                f"{self.url} shows a certificate that is not trusted ({error.verify_message}). Name"
                " it, or that of who signed it: --ca FILE; or have it not looked at: --insecure."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ConserveError(
                f"no answer from the control port {self.url} ({error}). {self._advice}"
            ) from error
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._tls)

    def _see_certificate(self, connection: http.client.HTTPConnection) -> None:
        """That it is the router's own, before the key is told, which is not for others."""
        if self._cert_file is None:
            return
        sock = connection.sock
        shown = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        if not is_shown(self._cert_file, shown):
            raise ConserveError(
                f"what listens at {self.url} shows another certificate than"
                f" {self._cert_file}. If it was renewed, send the router a SIGHUP."
            )


def of_tier_map(file: Path) -> ControlPort:
    """The control port of a tier map's router, with its key, and its certificate alone."""
    settings = load_tier_map(file).router
    host = _ANY_ADDRESS.get(settings.control_host, settings.control_host)
    scheme = "http" if settings.tls is None else "https"
    return ControlPort(
        f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.control_port}",
        key=admin_key(settings),
        advice="Is the router of this tier map running, on this machine? Else see --url.",
        tls=None if settings.tls is None else any_certificate(),
        cert_file=None if settings.tls is None else settings.tls.cert_file,
    )


def at_url(
    url: str, key_env: str | None = None, ca: Path | None = None, *, is_insecure: bool = False
) -> ControlPort:
    """The control port at a URL, with the key in a variable. An https one must show a certificate
    of `ca`, or one that the system trusts. Raises ConfigError."""
    return ControlPort(
        url,
        key=_key_in(key_env),
        advice="Is the router up? --url names its control port (router.control_port in the tier"
        " map), with https:// where router.tls is set.",
        tls=_trusting(url, ca, is_insecure=is_insecure),
    )


def _trusting(url: str, ca: Path | None, *, is_insecure: bool) -> ssl.SSLContext | None:
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_right = False
    if not is_right:
        raise ConfigError(f"--url: {url} is no URL. Say http://HOST:PORT of the control port.")
    if ca is not None and is_insecure:
        raise ConfigError("--ca: with --insecure no certificate is looked at; leave one out")
    if parts.scheme == "http":
        if ca is not None or is_insecure:
            what = "ca" if ca is not None else "insecure"
            raise ConfigError(f"--{what}: {url} has no certificate. Say https://HOST:PORT.")
        return None
    if is_insecure:
        return any_certificate()
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--ca: {ca} holds no certificates in PEM form: {error}") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the router's own will do
    return context


def _key_in(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise ConfigError(f"--key-env: the variable {name} is not set. Put the admin key in it.")
    return key


def worker_path(worker_id: str, what: str = "") -> str:
    """The path of a worker, or of something done with it."""
    return f"/admin/workers/{quote(worker_id, safe='')}" + (f"/{what}" if what else "")


def _words(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
