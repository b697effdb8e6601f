"""A fleet as a picture: hosts as boxes, their workers as rows of GPUs, KV's way between roles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from conserve_sglang.core.worker import Role
from conserve_sglang.report.chart import CHARACTER, text

ROLE_COLORS: Mapping[Role, int] = {Role.PREFILL: 2, Role.DECODE: 1, Role.MIXED: 4}
SQUARE, GAP = 18, 5
MOST_SQUARES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal workers of one host: `count` of them with `tp` GPUs each."""

    name: str
    gpu: str
    role: Role
    count: int
    tp: int
    knobs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A host, its groups, and how many of its GPUs are not used."""

    host: str
    groups: Sequence[Group]
    num_free: int


def fleet_svg(boxes: Sequence[Box], width: int) -> str:
    """The picture at a width in pixels; hosts stand one under the other."""
    parts: list[str] = []
    y = 24.0
    x_end = width - 2
    roles = [role for role in Role if any(group.role is role for b in boxes for group in b.groups)]
    x = 2.0
    for role in roles:
        parts.append(
            f'<rect class="f-{ROLE_COLORS[role]}" x="{x:.0f}" y="3" width="11" height="11" rx="2"/>'
        )
        parts.append(text(role.value, x + 16, 13))
        x += 16 + CHARACTER * len(role.value) + 18
    parts.append(f'<rect class="box" x="{x:.0f}" y="3" width="11" height="11" rx="2"/>')
    parts.append(text("not used", x + 16, 13))
    for box in boxes:
        drawn, height = _box(box, 2, y, x_end - 2)
        parts.append(drawn)
        y += height + 12
    words = "Hosts with the GPUs that serve each role"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y:.0f}" role="img"'
        f' class="chart"><title>{escape(words)}</title>{"".join(parts)}</svg>'
    )


def _box(box: Box, x: float, y: float, width: float) -> tuple[str, float]:
    inner, at = [], y + 26
    for group in box.groups:
        drawn, height = _group(group, x + 12, at, width - 24)
        inner.append(drawn)
        at += height + 8
    if box.num_free:
        drawn, height = _squares(box.num_free, 1, "box", x + 12, at, width - 24)
        inner.append(drawn)
        at += height + 8
    height = at - y
    frame = (
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        ' rx="7" fill-opacity="0.5"/>'
    )
    return frame + text(box.host, x + 12, y + 18, "heading") + "".join(inner), height


def _group(group: Group, x: float, y: float, width: float) -> tuple[str, float]:
    size = f" of {group.tp} GPUs" if group.tp > 1 else ""
    words = f"{group.name}: {group.count} x {group.gpu}{size}"
    parts = [text(words, x, y + 10, "value")]
    extra = 0.0
    if group.knobs:
        is_beside = CHARACTER * (len(words) + len(group.knobs) + 3) < width
        place = (x + width, y + 10, "label", "end") if is_beside else (x, y + 24, "label", "start")
        parts.append(text(group.knobs, *place))
        extra = 0.0 if is_beside else 14.0
    color = f"f-{ROLE_COLORS[group.role]}"
    drawn, height = _squares(group.count, group.tp, color, x, y + 18 + extra, width)
    return "".join(parts) + drawn, 18 + extra + height


def _squares(count: int, tp: int, kind: str, x: float, y: float, width: float) -> tuple[str, float]:
    """One square a GPU; those of a worker touch. Beyond a limit a few, and how many they are."""
    shown = min(count, max(1, MOST_SQUARES // tp))
    step = tp * SQUARE + GAP
    a_row = max(1, int((width + GAP) / step))
    parts = []
    for number in range(shown):
        row, column = divmod(number, a_row)
        left, top = x + column * step, y + row * (SQUARE + GAP)
        parts.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{tp * SQUARE}"'
            f' height="{SQUARE}" rx="3"/>'
        )
        parts += [
            f'<path class="grid" d="M{left + cut * SQUARE:.1f} {top:.1f}v{SQUARE}"/>'
            for cut in range(1, tp)
        ]
    rows = -(-shown // a_row)
    height = rows * (SQUARE + GAP) - GAP
    if shown < count:
        parts.append(text(f"and {count - shown} more", x, y + height + 14))
        height += 16
    return "".join(parts), height
