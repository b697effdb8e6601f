"""Clients that wait to be told something by the brain."""

import logging
from collections.abc import Callable

from conserve_sglang.router.client import ClientConnection
from conserve_sglang.router.ports import Told
from conserve_sglang.router.problem import OWN_FAULT

logger = logging.getLogger(__name__)


class Inquirer:
    """A client that waits to be told something, or to go on with it where it was asked for well."""

    def __init__(
        self, client: ClientConnection, go_on: Callable[[bytes], None] | None = None
    ) -> None:
        self._client: ClientConnection | None = client
        self._go_on = go_on

    def hear(self, told: Told) -> None:
        """Answer the client, or go on."""
        client = self._client
        if client is None:
            return
        if self._go_on is not None and told.status == 200:
            self._go_on(told.body)
        else:
            headers = [(b"content-type", told.content_type)]
            if told.retry_after_s is not None:
                headers.append((b"retry-after", b"%d" % told.retry_after_s))
            client.answer(told.status, headers, told.body)

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
    logger.exception("a request could not be served")
    asker, client.asker = client.asker, None
    if asker is not None:
        asker.client_gone()
    client.answer_problem(OWN_FAULT)
