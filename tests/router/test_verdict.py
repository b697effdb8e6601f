import pytest

from conserve_sglang.dispatch import FailureCause
from conserve_sglang.router.problem import from_worker
from conserve_sglang.router.verdict import error_in, failure_cause, prefill_failure_cause

REFUSED = "conserve-refused reason=prefix_missing cached=0 uncached=9"


@pytest.mark.parametrize(
    ("event", "verdict"),
    [
        (b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":null}]}\n\n', None),
        (b'data: {"choices":[{"delta":{"content":"\\"abort\\""}}]}\n\n', None),
        (b'data: {"choices":[{"text":"a","x":"abort"}]}\n\n', None),
        (b'data: {"error":{"message":"m","code":409}}\n\n', (409, "m")),
        (b'data: {"error":{"message":"m","code":409}}\n:=\n\n', (409, "m")),
        (b'data: {"error":{"message":"m","code":"x"}}\n\ndata: [DONE]\n\n', (400, "m")),
        (
            b'data: {"meta_info":{"finish_reason":{"type":"abort","message":"m",'
            b'"status_code":409}}}'
            b"\n\ndata: [DONE]\n\n",
            (409, "m"),
        ),
        (b'data: {"choices":[{"finish_reason":"abort"}]}\n\n', (500, "the worker aborted the"
                                                                     " request")),
        (b'data: {"error" broken "abort"\n\n', None),
    ],
)  # fmt: skip
def test_error_of_a_first_event(event: bytes, verdict: tuple[int, str] | None) -> None:
    assert error_in(event) == verdict


@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (409, REFUSED.encode(), FailureCause.PREFIX_MISSING),
        (409, REFUSED.replace("prefix_missing", "append_too_large").encode(),
         FailureCause.APPEND_TOO_LARGE),
        (409, b"another conflict", None),
        (400, REFUSED.encode(), None),
        (500, b"", FailureCause.DECODER_FAILED),
        (502, b"", FailureCause.DECODER_FAILED),
        (503, b"", FailureCause.DECODER_BUSY),
        (429, b"", FailureCause.DECODER_BUSY),
        (422, b"", None),
    ],
)  # fmt: skip
def test_what_lets_a_turn_be_tried_again(
    status: int, body: bytes, cause: FailureCause | None
) -> None:
    assert failure_cause(status, body) is cause


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (503, FailureCause.PREFILLER_BUSY),
        (429, FailureCause.PREFILLER_BUSY),
        (500, FailureCause.PREFILLER_FAILED),
        (400, None),
    ],
)
def test_what_of_a_prefiller_lets_a_turn_be_tried_again(
    status: int, cause: FailureCause | None
) -> None:
    assert prefill_failure_cause(status) is cause


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"object":"error","message":"m","type":"t","param":null,"code":400}', "m"),
        (b'{"error":{"message":"m"}}', "m"),
        (b'{"error":"m"}', "m"),
        (b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]'),
        (b"plain", "plain"),
        (b"", "The worker answered 400 without saying why."),
    ],
)
def test_every_shape_of_a_workers_error_becomes_one(body: bytes, message: str) -> None:
    problem = from_worker(400, body)
    assert (problem.status, problem.message) == (400, message)
