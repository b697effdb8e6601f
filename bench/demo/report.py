"""What the demo shows: a table of turns, a table of conversations, and what went wrong."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.demo.energy import energy_json, energy_table
from bench.demo.play import PlayedConversation, PlayedTurn

Run = tuple[list[PlayedConversation], int]


def print_tables(conserve: Run, stock_pd: Run, stock: Run) -> None:
    """Print both tables; times are measured here, on this machine's CPU, with a tiny model."""
    console = Console()
    console.print(_turn_table(conserve[0], stock_pd[0]))
    console.print(_conversation_table(conserve[0], stock_pd[0], stock[0]))
    energy = energy_table({"conserve": conserve[0], "stock PD": stock_pd[0]})
    if energy is not None:
        console.print(energy)
    console.print(
        f"KV transfers counted at the prefill server: conserve {conserve[1]}, stock PD"
        f" {stock_pd[1]} (on the same decode servers, with their radix cache)."
        " P0 is prefill-0, D1 is decode-1. Look at who ran each turn and how often KV moved."
        " What is cached in a first turn is the opening that all conversations share. The times"
        " are wall clock on shared CPU cores with a tiny model, and say nothing about speed.",
        soft_wrap=False,
    )


def faults(conserve: Run, stock_pd: Run, stock: Run) -> list[str]:
    """What must not be; empty when everything held."""
    found = []
    for name, (played, _) in (("conserve", conserve), ("stock PD", stock_pd)):
        for conversation, reference in zip(played, stock[0], strict=True):
            for index, turns in enumerate(zip(conversation.turns, reference.turns, strict=True), 1):
                if turns[0].output != turns[1].output:
                    found.append(
                        f"{name}: conversation {conversation.number} turn {index} differs from"
                        f" the stock server: {turns[0].output} != {turns[1].output}"
                    )
    for conversation in conserve[0]:
        moved = _num_transfers(conversation)
        if moved != 1:
            found.append(f"conversation {conversation.number} moved its KV {moved} times, not once")
    if conserve[1] != len(conserve[0]):
        found.append(f"the prefill server sent KV {conserve[1]} times for {len(conserve[0])}")
    return found


def to_json(conserve: Run, stock_pd: Run, stock: Run) -> dict[str, Any]:
    """All figures, for a program."""
    runs = {"conserve": conserve, "stock_pd": stock_pd, "stock": stock}
    return {
        name: {
            "num_kv_transfers_at_sender": transfers,
            "energy": energy_json(played),
            "conversations": [_conversation_json(conversation) for conversation in played],
        }
        for name, (played, transfers) in runs.items()
    }


def _num_transfers(conversation: PlayedConversation) -> int:
    return sum(turn.prefiller is not None for turn in conversation.turns)


def _where(turn: PlayedTurn) -> str:
    decoder = _short(turn.decoder)
    if turn.prefiller is None:
        return f"{decoder} alone"
    return f"{_short(turn.prefiller)} > {decoder}"


def _short(worker: str | None) -> str:
    """P0 for prefill-0."""
    tier, _, number = (worker or "?").rpartition("-")
    return tier[:1].upper() + number


def _turn_table(conserve: list[PlayedConversation], stock_pd: list[PlayedConversation]) -> Table:
    table = Table(title="Turns: who did what", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("\nno.", "\nturn", "prompt\ntokens"):
        table.add_column(title, justify="right", no_wrap=True)
    for name in ("conserve", "stock PD"):
        table.add_column(f"{name}\nran on", no_wrap=True)
        table.add_column("cached\ntokens", justify="right", no_wrap=True)
        table.add_column("TTFT\nms", justify="right", no_wrap=True)
    for ours, theirs in zip(conserve, stock_pd, strict=True):
        for index, (mine, other) in enumerate(zip(ours.turns, theirs.turns, strict=True), 1):
            row = [str(ours.number) if index == 1 else "", str(index), f"{mine.prompt_tokens:,}"]
            for turn in (mine, other):
                row += [_where(turn), f"{turn.cached_tokens:,}", f"{1e3 * turn.times.ttft_s:.0f}"]
            table.add_row(*row, end_section=index == len(ours.turns))
    return table


def _conversation_table(
    conserve: list[PlayedConversation],
    stock_pd: list[PlayedConversation],
    stock: list[PlayedConversation],
) -> Table:
    table = Table(title="Conversations", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nno.", justify="right")
    for name in ("conserve", "stock PD"):
        table.add_column(f"{name}\nKV transfers", justify="right", no_wrap=True)
        table.add_column("TTFET\nms", justify="right", no_wrap=True)
    table.add_column("answers equal the\nstock server's", justify="center", no_wrap=True)
    for ours, theirs, reference in zip(conserve, stock_pd, stock, strict=True):
        equal = all(
            mine.output == other.output == true.output
            for mine, other, true in zip(ours.turns, theirs.turns, reference.turns, strict=True)
        )
        table.add_row(
            str(ours.number),
            str(_num_transfers(ours)),
            f"{1e3 * ours.ttfet_s:,.0f}",
            str(_num_transfers(theirs)),
            f"{1e3 * theirs.ttfet_s:,.0f}",
            "yes" if equal else "NO",
        )
    return table


def _conversation_json(conversation: PlayedConversation) -> dict[str, Any]:
    return {
        "conversation": conversation.number,
        "ttfet_s": round(conversation.ttfet_s, 4),
        "e2e_s": round(conversation.e2e_s, 4),
        "num_kv_transfers": _num_transfers(conversation),
        "turns": [
            {
                "prefiller": turn.prefiller,
                "decoder": turn.decoder,
                "reason": turn.reason,
                "prompt_tokens": turn.prompt_tokens,
                "cached_tokens": turn.cached_tokens,
                "output_tokens": turn.output_tokens,
                "ttft_s": round(turn.times.ttft_s, 4),
                "text": turn.text,
                "tool_calls": [list(call) for call in turn.calls],
            }
            for turn in conversation.turns
        ],
    }
