import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_sglang.workers.sse import UsageFilter
from conserve_sglang.workers.usage import Usage

COUNTS = {
    "prompt_tokens": 12,
    "total_tokens": 15,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 8},
}
USAGE = Usage(prompt_tokens=12, output_tokens=3, cached_tokens=8)


def event(content: object, **json_style: object) -> bytes:
    return b"data: " + json.dumps(content, **json_style).encode() + b"\n\n"  # type: ignore[arg-type]


TOKEN = event({"choices": [{"delta": {"content": 'say "choices":[] now'}}], "usage": None})
COUNTED = event({"id": "x", "choices": [], "usage": COUNTS})
DONE = b"data: [DONE]\n\n"


def test_only_the_usage_event_is_held_back() -> None:
    filtered = UsageFilter()
    assert filtered.feed(TOKEN) == TOKEN
    assert filtered.feed(COUNTED + DONE) == DONE
    assert filtered.usage == USAGE


def test_empty_choices_without_usage_go_on() -> None:
    extra = event({"choices": [], "usage": None, "sglext": {"a": 1}})
    counted_and_more = event({"choices": [], "usage": COUNTS, "sglext": {"a": 1}})
    filtered = UsageFilter()
    assert filtered.feed(extra + counted_and_more) == extra + counted_and_more
    assert filtered.usage is None


def test_event_too_long_to_hold_goes_on_at_once() -> None:
    long = event({"choices": [{"text": "x" * 40_000}]})
    filtered = UsageFilter()
    assert filtered.feed(long[:30_000]) == long[:30_000]
    assert filtered.is_passing
    assert filtered.feed(long[30_000:] + COUNTED + DONE) == long[30_000:] + DONE
    assert filtered.usage == USAGE


@given(st.lists(st.integers(0, 1200), max_size=12), st.integers(0, 5))
def test_where_a_stream_is_cut_makes_no_difference(cuts: list[int], num_tokens: int) -> None:
    stream = TOKEN * num_tokens + COUNTED + DONE
    filtered = UsageFilter()
    passed = b""
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in pairwise(edges):
        passed += filtered.feed(stream[start:end])
    assert passed + filtered.flush() == TOKEN * num_tokens + DONE
    assert filtered.usage == USAGE


def test_unfinished_last_event_is_flushed() -> None:
    filtered = UsageFilter()
    assert filtered.feed(TOKEN + b"data: x") == TOKEN
    assert filtered.flush() == b"data: x"


def marked(content: object, mark: bytes) -> bytes:
    return event(content)[:-1] + b":=" + mark + b"\n\n"


@given(
    marks=st.lists(st.sampled_from([b"", b"7", b"1;2,3"]), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 600), max_size=8),
    hides_usage=st.booleans(),
)
def test_told_ids_are_cut_out_however_events_are_split(
    marks: list[bytes], cuts: list[int], hides_usage: bool
) -> None:
    contents = [{"choices": [{"delta": {"content": f"x\n:={n}"}}]} for n in range(len(marks))]
    body = b"".join(map(marked, contents, marks)) + COUNTED[:-1] + b":=\n\n" + DONE
    told: list[bytes] = []
    filtered = UsageFilter(told, hides_usage=hides_usage)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    passed = b"".join(filtered.feed(body[a:b]) for a, b in pairwise(places)) + filtered.flush()
    counted = b"" if hides_usage else COUNTED
    assert passed == b"".join(map(event, contents)) + counted + DONE
    assert told == [*marks, b""]
    assert (filtered.usage == USAGE) is hides_usage


def test_event_too_long_to_hold_ends_the_telling() -> None:
    told: list[bytes] = []
    filtered = UsageFilter(told, hides_usage=False)
    first = marked({"choices": []}, b"1")
    long = marked({"choices": ["y" * 2_000_000]}, b"2")
    assert filtered.feed(first) == event({"choices": []})
    assert told == [b"1"]
    assert filtered.feed(long[:1_500_000]) + filtered.feed(long[1_500_000:]) == long
    assert told == []


def usual(content: str, usage: object = None, num_choices: int = 1) -> dict[str, object]:
    """An event as SGLang writes it, with the counts last."""
    return {"id": "a", "choices": [{"text": content}] * num_choices, "usage": usage}


TELLING = {
    b"7": marked(usual("x"), b"7"),
    b"8": marked(usual("x" * 5000), b"8"),
    b"9": marked(usual("x", COUNTS), b"9"),
    b"": marked(usual("", COUNTS, 0), b""),
    b"10": marked(usual("", None, 0), b"10"),
    b"11": b"data: two\ndata: lines\n:=11\n\n",
    b"12": b"data: not last\n:=12\nid: 1\n\n",
    b"none": event(usual("x")),
}


@pytest.mark.parametrize("hides_usage", [True, False])
@given(marks=st.lists(st.sampled_from(list(TELLING)), min_size=1, max_size=8), cut=st.integers(0))
def test_events_one_by_one_and_all_at_once_are_read_alike(
    hides_usage: bool, marks: list[bytes], cut: int
) -> None:
    """One short event that tells is read by a way of its own."""
    events = [*(TELLING[mark].replace(b": ", b":") for mark in marks), DONE]
    stream = b"".join(events)
    cut %= len(stream)
    seen: list[tuple[bytes, Usage | None]] = []
    for pieces in (events, [stream], [stream[:cut], stream[cut:]]):
        told: list[bytes] = []
        filtered = UsageFilter(told, hides_usage=hides_usage)
        seen.append((b"".join(map(filtered.feed, pieces)) + filtered.flush(), filtered.usage))
        assert told == [mark for mark in marks if mark != b"none"]
    assert seen[0] == seen[1] == seen[2]
    passed, usage = seen[0]
    assert b"\n:=" not in passed
    is_counted = hides_usage and b"" in marks
    assert usage == (USAGE if is_counted else None)
    assert passed.count(b"\n\n") == len(events) - is_counted * marks.count(b"")
