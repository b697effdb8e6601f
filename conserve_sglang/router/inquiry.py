"""Clients that wait to be told something by the brain."""

import logging
from collections.abc import Callable

from conserve_sglang.router.client import ClientConnection
from conserve_sglang.router.ports import Told
from conserve_sglang.router.problem import OWN_FAULT
from conserve_sglang.telemetry.logs import told

logger = logging.getLogger(__name__)


class Inquirer:
    """A client that waits to be told something, or to go on with it where it was asked for well."""

    __slots__ = ("_client", "_go_on")

    def __init__(
        self, client: ClientConnection, go_on: Callable[[bytes], None] | None = None
    ) -> None:
        self._client: ClientConnection | None = client
        self._go_on = go_on

    def hear(self, said: Told) -> None:
        """Answer the client, or go on."""
        client = self._client
        if client is None:
            return
        if self._go_on is not None and said.status == 200:
            self._go_on(said.body)
        else:
            headers = [(b"content-type", said.content_type)]
            if said.retry_after_s is not None:
                headers.append((b"retry-after", b"%d" % said.retry_after_s))
            client.answer(said.status, headers, said.body, code=said.code)

    # Asker

    def client_gone(self) -> None:
        self._client = None

    def client_slow(self) -> None:
        pass  # the answer is there as a whole

    def client_ready(self) -> None:
        pass


def fail(client: ClientConnection) -> None:
    """A fault of ours: called where an exception is handled."""
    # A path can hold a conversation's name, so it is not told.
    request_id = client.request_id
    fields = told("request_failed", request_id=request_id)
    logger.exception("request %s could not be served", request_id, extra=fields)
    asker, client.asker = client.asker, None
    if asker is not None:
        asker.client_gone()
    client.answer_problem(OWN_FAULT)
