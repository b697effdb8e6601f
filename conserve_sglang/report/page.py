"""A page of HTML that needs nothing but itself: its style is inside, and it has no script."""

import re
from collections.abc import Callable, Sequence
from html import escape

from conserve_sglang.report.theme import FONT, drawing, palette

WIDE, NARROW = 640, 340
"""Widths that drawings are made for; the page shows the one that fits."""

_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--c-page);color:var(--c-ink);font:15px/1.5 FONT}
main{max-width:1080px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:25px;line-height:1.25;margin:0 0 6px}
h2{font-size:18px;margin:40px 0 10px;padding-top:14px;border-top:1px solid var(--c-line)}
p,li{margin:6px 0;max-width:76ch}
.soft{color:var(--c-soft)}.small{font-size:12px;font-weight:400}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:18px 0}
.tile{background:var(--c-panel);border:1px solid var(--c-line);border-radius:8px;padding:10px 14px}
.tile b{display:block;font-size:21px;line-height:1.3;font-variant-numeric:tabular-nums}
.tile span{color:var(--c-soft);font-size:13px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:24px}
.chart{display:block;width:100%;height:auto}
.wide .chart{max-width:720px}
.narrow{display:none}
.scroll{overflow-x:auto;margin-top:14px}
table{border-collapse:collapse;font-size:14px;min-width:100%}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--c-line);
vertical-align:top}
th{color:var(--c-soft);font-weight:600;white-space:nowrap}
td:first-child{min-width:150px}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tr.chosen td{font-weight:600}
.badge{display:inline-block;border-radius:4px;padding:0 6px;font-size:12px;
border:1px solid currentColor;white-space:nowrap}
.good{color:var(--c-good)}.bad{color:var(--c-bad)}.warn{color:var(--c-2)}
code,pre{font:13px/1.5 ui-monospace,'Liberation Mono',monospace}
pre{background:var(--c-panel);border:1px solid var(--c-line);border-radius:8px;padding:12px;
white-space:pre-wrap;overflow-wrap:anywhere}pre span{display:inline-block}
ul{padding-left:20px;margin:6px 0}
.key{margin-right:7px}
@media (max-width:700px){.wide{display:none}.narrow{display:block}main{padding:16px 14px 48px}
h1{font-size:21px}.tiles{grid-template-columns:repeat(2,1fr)}
table,tbody,tr{display:block}thead{display:none}
tr{border-bottom:1px solid var(--c-line);padding:8px 0}
td,td.n{display:grid;grid-template-columns:minmax(0,2fr) minmax(0,3fr);column-gap:12px;border:0;
padding:2px 0;text-align:left;white-space:normal;overflow-wrap:anywhere}
td::before{content:attr(data-name);color:var(--c-soft);font-weight:400}
td:first-child{display:block;font-weight:600;padding-bottom:4px}
td:first-child::before{content:none}td.none{display:none}}
@media print{h2{break-after:avoid}.chart{break-inside:avoid}}
"""


def page(title: str, sections: Sequence[str]) -> str:
    """The whole document."""
    style = palette() + drawing() + _STYLE.replace("FONT", FONT).replace("\n", "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what is under it."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def said(words: str) -> str:
    """Words of a file as HTML: escaped, what is in backticks as code, +- as one sign."""
    text = escape(re.sub(r"\+-(?=\d)", "\u00b1", words))
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)


def paragraph(words: str, kind: str = "") -> str:
    """Words, escaped."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<p{attribute}>{said(words)}</p>"


def listing(lines: Sequence[str]) -> str:
    """Points one under the other; nothing where there are none."""
    return "<ul>" + "".join(f"<li>{said(line)}</li>" for line in lines) + "</ul>" if lines else ""


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Figures with what they are, and a colour class ("" for none)."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b class="{kind}">{escape(value)}</b><span>{escape(name)}</span>'
            "</div>"
            for value, name, kind in values
        )
        + "</div>"
    )


def fitting(draw: Callable[[int], str]) -> str:
    """A drawing for a wide and for a narrow screen."""
    return either(draw(WIDE), draw(NARROW))


def either(wide: str, narrow: str) -> str:
    """One of two drawings, as the screen is."""
    return f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'


def pair(*drawings: str) -> str:
    """Drawings beside each other where there is room."""
    return '<div class="pair">' + "".join(f"<div>{one}</div>" for one in drawings) + "</div>"


def table(
    columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]], chosen: int | None = None
) -> str:
    """A table; columns are names and whether they hold numbers. Cells are HTML already. On a narrow
    screen each row is a block, headed by its first cell, with the columns' names beside the others.
    """
    head = "".join(f"<th{_kind(is_number)}>{escape(name)}</th>" for name, is_number in columns)
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(
            f'<td{_kind(is_number, cell)} data-name="{escape(name)}"><div>{cell}</div></td>'
            for (name, is_number), cell in zip(columns, row, strict=True)
        )
        body += f"<tr{' class=chosen' if number == chosen else ''}>{cells}</tr>"
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _kind(is_number: bool, cell: str = "-") -> str:
    kinds = [*(["n"] if is_number else []), *([] if cell else ["none"])]
    return f' class="{" ".join(kinds)}"' if kinds else ""


def command_line(words: str) -> str:
    """A command, broken between its words where it is too long."""
    shown = (f"<span>{escape(word)}</span>" for word in words.split(" "))
    return f"<pre>{' '.join(shown)}</pre>"


def badge(words: str, kind: str = "") -> str:
    """A word in a frame."""
    return f'<span class="badge {kind}">{escape(words)}</span>'
