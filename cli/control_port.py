"""Asks a running router through its control port."""

import http.client
import json
import ssl
from typing import Any
from urllib.parse import quote, urlencode

from conserve_sglang.core.errors import ConfigError, ConserveError
from conserve_sglang.core.tier import RouterSettings
from conserve_sglang.launcher.pinned import any_certificate, is_shown
from conserve_sglang.tiermap.secrets import admin_key

_ANSWER_S = 30.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class ControlPort:
    """The control port of the router whose settings are given."""

    def __init__(self, settings: RouterSettings) -> None:
        self._host = _ANY_ADDRESS.get(settings.control_host, settings.control_host)
        self._port = settings.control_port
        self._key = admin_key(settings)
        self._cert_file = None if settings.tls is None else settings.tls.cert_file

    @property
    def url(self) -> str:
        """Where it is."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._cert_file is None else 'https'}://{host}:{self._port}"

    def workers(self) -> list[dict[str, Any]]:
        """All workers as the router sees them."""
        _, answer = self.ask("GET", "/admin/workers")
        found: list[dict[str, Any]] = answer["workers"]
        return found

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
        return status, json.loads(data)

    def exchange(
        self, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> tuple[int, bytes]:
        """Status and body of an answer, whatever it says; ConserveError when there is none."""
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        connection = self._connection(timeout_s)
        try:
            self._connect(connection)
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ConserveError(
                f"no answer from the control port {self._host}:{self._port} ({error}). Is the"
                " router of this tier map running, on this machine?"
            ) from error
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._cert_file is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout_s, context=any_certificate()
        )

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        """With TLS, to the router's own certificate alone: the key is not for others."""
        connection.connect()
        if self._cert_file is None:
            return
        sock = connection.sock
        shown = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
        if not is_shown(self._cert_file, shown):
            raise ConserveError(
                f"what listens on {self._host}:{self._port} shows another certificate than"
                f" {self._cert_file}. If it was renewed, send the router a SIGHUP."
            )


def worker_path(worker_id: str, what: str = "") -> str:
    """The path of a worker, or of something done with it."""
    return f"/admin/workers/{quote(worker_id, safe='')}" + (f"/{what}" if what else "")


def _words(data: bytes) -> str:
    try:
        return str(json.loads(data)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
