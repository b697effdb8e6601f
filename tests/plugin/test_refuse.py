import asyncio
from http import HTTPStatus
from typing import Any

import pytest

from conserve_sglang.core.local_turn import Refusal, RefusalReason
from conserve_sglang.plugin.refuse import handle_abort_finish_reason

REFUSAL = Refusal(reason=RefusalReason.PREFIX_MISSING, cached_tokens=1, uncached_tokens=2)


class HttpError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(status_code)
        self.status_code = status_code


def ended(message: str, status: int) -> dict[str, Any]:
    reason = {"type": "abort", "message": message, "status_code": status}
    return {"meta_info": {"finish_reason": reason}}


async def stock(manager: Any, out: dict[str, Any], state: Any, is_stream: bool) -> Any:
    """As 0.5.17: of the statuses, only 503 is an error."""
    status = out["meta_info"]["finish_reason"]["status_code"]
    if status == HTTPStatus.SERVICE_UNAVAILABLE and not is_stream:
        raise HttpError(status)
    return out


def answer(out: dict[str, Any], *, is_stream: bool) -> Any:
    return asyncio.run(handle_abort_finish_reason(stock, None, out, None, is_stream))


def test_a_refusal_is_an_http_error() -> None:
    with pytest.raises(HttpError) as caught:
        answer(ended(REFUSAL.to_message(), 409), is_stream=False)
    assert caught.value.status_code == 409


def test_a_streamed_refusal_has_a_status_that_makes_an_error_event() -> None:
    out = answer(ended(REFUSAL.to_message(), 409), is_stream=True)
    assert isinstance(out["meta_info"]["finish_reason"]["status_code"], HTTPStatus)
    assert out["meta_info"]["finish_reason"]["status_code"] == 409


def test_any_other_abort_is_left_alone() -> None:
    with pytest.raises(HttpError) as caught:
        answer(ended("queue full", 503), is_stream=False)
    assert caught.value.status_code == 503
