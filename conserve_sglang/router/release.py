"""Tells a worker to let go of a conversation's KV."""

import logging

from conserve_sglang.core.errors import WorkerError
from conserve_sglang.core.ids import ConversationId
from conserve_sglang.router.worker import Worker
from conserve_sglang.workers.fetch import fetch

logger = logging.getLogger(__name__)


async def close_sessions(worker: Worker, conversations: list[ConversationId]) -> None:
    """One after the other. What fails is logged: the worker evicts it when it needs the room."""
    for conversation_id in conversations:
        await _close_session(worker, conversation_id)


async def _close_session(worker: Worker, conversation_id: ConversationId) -> None:
    body = b'{"session_id":"%b"}' % conversation_id.encode()
    try:
        status, _ = await fetch(worker.control, "POST", "/close_session", body=body)
    except WorkerError as error:
        logger.warning("%s not released on %s: %s", conversation_id, worker.worker_id, error)
        return
    level = logging.DEBUG if status == 200 else logging.WARNING
    logger.log(level, "%s released on %s: %d", conversation_id, worker.worker_id, status)
