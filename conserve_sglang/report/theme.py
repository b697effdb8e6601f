"""Colours and type of reports, for light and for dark."""

_LIGHT = {
    "page": "#ffffff", "panel": "#f6f7f9", "ink": "#1b1f24", "soft": "#57606a", "line": "#d8dde3",
    "1": "#2f6fd0", "2": "#d9730d", "3": "#1f8a6d", "4": "#9b51b0", "5": "#8a6d1f", "6": "#c0392b",
    "good": "#1a7f4b", "bad": "#b3261e", "quiet": "#9aa4af", "strong": "#1b1f24",
}  # fmt: skip
_DARK = {
    "page": "#14171a", "panel": "#1d2125", "ink": "#e8ebee", "soft": "#a3adb8", "line": "#353c44",
    "1": "#6ea3f0", "2": "#f0a05a", "3": "#4fc3a1", "4": "#cf93e0", "5": "#d1b45c", "6": "#ee8177",
    "good": "#57c98d", "bad": "#f2857d", "quiet": "#6d7883", "strong": "#ffffff",
}  # fmt: skip
SERIES = ("1", "2", "3", "4", "5", "6", "good", "bad", "quiet", "strong")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


def variables(colors: dict[str, str]) -> str:
    """CSS variables of a palette."""
    return "".join(f"--c-{name}:{color};" for name, color in colors.items())


def palette() -> str:
    """Both palettes; the reader's system decides."""
    return (
        f":root{{color-scheme:light dark;{variables(_LIGHT)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(_DARK)}}}}}"
    )


def drawing() -> str:
    """How parts of a chart look."""
    fills = "".join(
        f".f-{name}{{fill:var(--c-{name})}}.s-{name}{{stroke:var(--c-{name})}}" for name in SERIES
    )
    return (
        f"text{{font:11px {FONT};fill:var(--c-soft)}}text.heading{{font-weight:600;font-size:12px;"
        "fill:var(--c-ink)}text.value{fill:var(--c-ink)}text.tag{font-weight:600;"
        "fill:var(--c-ink)}.page{fill:var(--c-page)}"
        ".grid{stroke:var(--c-line);stroke-width:1;fill:none}"
        ".axis{stroke:var(--c-soft);stroke-width:1;fill:none}"
        ".line{fill:none;stroke-width:2;stroke-linejoin:round}.dashed{stroke-dasharray:4 3}"
        ".area{fill-opacity:.82}"
        ".dot{stroke:var(--c-page);stroke-width:1.5}"
        ".mark{stroke:var(--c-bad);stroke-width:1.5;stroke-dasharray:5 4;fill:none}"
        ".box{fill:var(--c-panel);stroke:var(--c-line)}.flow{stroke:var(--c-soft);"
        "stroke-width:1.5;fill:none}" + fills
    )


def standalone() -> str:
    """The style of an SVG file that stands alone."""
    return palette() + drawing()
