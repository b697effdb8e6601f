"""Numbers in words, and as plain JSON."""

import json
from math import inf, nan

from cli.words import counted, finite


def test_one_is_not_in_the_plural() -> None:
    assert [counted(number, "turn") for number in (0, 1, 2, 1200)] == [
        "0 turns", "1 turn", "2 turns", "1,200 turns",
    ]  # fmt: skip


def test_what_never_ends_is_null_in_json() -> None:
    document = finite({"a": inf, "b": [1.5, (nan, "x")], "c": None})
    assert (
        json.dumps(document, allow_nan=False) == '{"a": null, "b": [1.5, [null, "x"]], "c": null}'
    )
