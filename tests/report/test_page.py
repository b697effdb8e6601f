"""Parts of a page: words of files are told as HTML, and tables can be read at any width."""

import pytest

from conserve_sglang.report.page import command_line, listing, paragraph, said, table


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("see `bench/estimator`", "see <code>bench/estimator</code>"),
        ("+-25-30 %", "\u00b125-30 %"),
        ("a + -b", "a + -b"),
        ("a `<b>`", "a <code>&lt;b&gt;</code>"),
        ("one ` alone", "one ` alone"),
    ],
)
def test_marks_become_what_they_stand_for(words: str, expected: str) -> None:
    assert said(words) == expected
    assert paragraph(words) == f"<p>{expected}</p>"


def test_a_cell_knows_its_column_and_an_empty_one_that_it_is_empty() -> None:
    text = table([("name", False), ("W < 1", True)], [["a", "5"], ["b", ""]], chosen=1)
    assert '<td class="n" data-name="W &lt; 1"><div>5</div></td>' in text
    assert '<td class="n none" data-name="W &lt; 1"><div></div></td>' in text
    assert "<tr class=chosen><td" in text


def test_no_lines_are_no_list() -> None:
    assert listing([]) == ""


def test_a_command_is_broken_between_its_words_only_and_can_be_copied() -> None:
    assert command_line("a --b <c>") == (
        "<pre><span>a</span> <span>--b</span> <span>&lt;c&gt;</span></pre>"
    )
