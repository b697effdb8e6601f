"""What are the parameters of the Claude-Code-shaped generator, read from the sessions themselves?

`python -m bench.fit_claude_code FILE` prints them as they stand in
`conserve_sglang/workload/claude_code_params.py`. FILE is claude_code_agent_turns.csv, from
github.com/callanjfox/kv-cache-tester @ 94f6046 (Apache-2.0), which is not part of this project.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from conserve_sglang.core.stats import percentile
from conserve_sglang.workload.claude_code import BLOCK_TOKENS, EARLY_TURNS
from conserve_sglang.workload.claude_code_params import LEVELS, RESUMED_TOKENS

KEPT_WHOLE = 0.99  # of the previous prompt; whole blocks never hold quite all of it
COMPACTED_AT_MOST = 175_000  # tokens, of what a window of 200,000 holds
COMPACTED = 0.5  # of the previous prompt's length


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A row of the file."""

    prompt: int
    output: int
    kept: int
    at_s: float
    api_s: float | None
    is_tool_call: bool


def sessions(path: Path) -> tuple[list[list[Turn]], list[list[Turn]]]:
    """Main sessions and sub-agents; turns without an answer are left out, as the reader does."""
    found: dict[tuple[str, str], list[Turn]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if int(row["out_tokens"]):
                found[row["trace_id"], row["agent"]].append(_turn(row))
    mains = [turns for (_, agent), turns in found.items() if agent == "main"]
    return mains, [turns for (_, agent), turns in found.items() if agent != "main"]


def _turn(row: dict[str, str]) -> Turn:
    return Turn(
        prompt=int(row["in_tokens"]),
        output=int(row["out_tokens"]),
        kept=int(row["cached_prefix_tokens_prev_turn"]),
        at_s=float(row["t_s"]),
        api_s=float(row["api_time_s"]) if row["api_time_s"] else None,
        is_tool_call=row["stop"] != "end_turn",
    )


def show(name: str, values: Iterable[float]) -> None:
    """One distribution, by the quantiles the generator keeps."""
    ordered = sorted(values)
    cells = [percentile(ordered, 100 * level) for level in LEVELS]
    text = ", ".join(f"{cell:.5g}" if cell % 1 else str(int(cell)) for cell in cells)
    print(f"{name}=({text}),  # {len(ordered)} values")


def show_kind(name: str, group: Sequence[Sequence[Turn]]) -> None:
    """Everything of one kind of conversation."""
    print(f"== {name}: {len(group)} conversations")
    show("num_turns", (len(turns) for turns in group))
    show("first_input", (turns[0].prompt for turns in group))
    show("output", (turn.output for turns in group for turn in turns))
    pairs = [pair for turns in group for pair in pairwise(turns)]
    show_growth(group)
    rewritten = [(a, b) for a, b in pairs if b.kept < KEPT_WHOLE * a.prompt]
    full = [(a, b) for a, b in rewritten if _is_compaction(a, b)]
    other = [(a, b) for a, b in rewritten if not _is_compaction(a, b)]
    print(f"rewritten: {len(other)} of {len(pairs)}; compacted: {len(full)}")
    if other:
        show("rewritten_length", (b.prompt / a.prompt for a, b in other))
        show("rewritten_kept", (min(1.0, b.kept / a.prompt) for a, b in other))
    if full:
        show("compaction_at", (a.prompt for a, b in full))
        show("compacted_to", (b.prompt for a, b in full))
        show("compacted_kept", (b.kept for a, b in full))
    gaps = [(a.is_tool_call, _gap_s(a, b)) for a, b in pairs if a.api_s is not None]
    print(
        f"answers that end a turn of the user's: {sum(not tool for tool, _ in gaps)} of {len(gaps)}"
    )
    show("tool_gap_s", (gap for tool, gap in gaps if tool))
    if not all(tool for tool, _ in gaps):
        show("user_gap_s", (gap for tool, gap in gaps if not tool))


def show_growth(group: Sequence[Sequence[Turn]]) -> None:
    """By how much prompts grow that keep the one before: early in a conversation, and later."""
    by_index = [(index, a, b) for turns in group for index, (a, b) in enumerate(pairwise(turns))]
    whole = [(i, b.prompt - a.prompt) for i, a, b in by_index if b.kept >= KEPT_WHOLE * a.prompt]
    show("early_growth", (grown for index, grown in whole if index < EARLY_TURNS))
    show("growth", (grown for index, grown in whole if index >= EARLY_TURNS))


def _is_compaction(before: Turn, after: Turn) -> bool:
    return after.prompt < COMPACTED * before.prompt


def _gap_s(before: Turn, after: Turn) -> float:
    return max(0.0, after.at_s - before.at_s - (before.api_s or 0.0))


def large_window_share(group: Sequence[Sequence[Turn]]) -> float:
    """Of the sessions that begin below it, those that outgrew where a window of 200,000 tokens is
    compacted."""
    small = [turns for turns in group if turns[0].prompt <= COMPACTED_AT_MOST]
    return sum(max(t.prompt for t in turns) > COMPACTED_AT_MOST for turns in small) / len(small)


def main() -> None:
    """Print all parameters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    mains, subs = sessions(parser.parse_args().file)
    print(f"blocks of {BLOCK_TOKENS}; {len(subs)} of {len(mains) + len(subs)} are sub-agents")
    show_kind("main", mains)
    for name, is_resumed in {"fresh": False, "resumed": True}.items():
        group = [t for t in mains if (t[0].prompt > RESUMED_TOKENS) == is_resumed]
        print(f"{name}: {len(group)}; large window {large_window_share(group):.3f} of those that")
        print(f"begin with at most {COMPACTED_AT_MOST} tokens")
        show("num_turns", (len(turns) for turns in group))
        show("first_input", (turns[0].prompt for turns in group))
        show_growth(group)
    show_kind("sub-agents", subs)


if __name__ == "__main__":
    main()
