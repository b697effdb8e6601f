import json

import pytest

from conserve_sglang.workers.usage import Usage, usage_in, usage_of

COUNTS = {
    "prompt_tokens": 12,
    "total_tokens": 15,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 8},
}
USAGE = Usage(prompt_tokens=12, output_tokens=3, cached_tokens=8)


@pytest.mark.parametrize(
    ("tail", "usage"),
    [
        (json.dumps({"choices": [], "usage": COUNTS}).encode(), USAGE),
        (json.dumps({"usage": COUNTS}, separators=(",", ":")).encode(), USAGE),
        (
            b'{"text":"","meta_info":{"prompt_tokens":5,"completion_tokens":2,"cached_tokens":1}}',
            Usage(prompt_tokens=5, output_tokens=2, cached_tokens=1),
        ),
        (
            b'{"usage":{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":null}}',
            Usage(prompt_tokens=5, output_tokens=2, cached_tokens=0),
        ),
        (b'{"text":"\\"prompt_tokens\\":7"}', None),
        (b'{"usage":{"prompt_tokens":null}}', None),
        (b"", None),
    ],
)
def test_counts_are_read_from_the_tail(tail: bytes, usage: Usage | None) -> None:
    assert usage_in(tail) == usage_of(tail) == usage


def test_last_counts_win() -> None:
    first = b'data: {"meta_info":{"prompt_tokens":5,"completion_tokens":1,"cached_tokens":4}}\n\n'
    assert usage_in(first + first.replace(b's":1', b's":9')) == Usage(
        prompt_tokens=5, output_tokens=9, cached_tokens=4
    )
