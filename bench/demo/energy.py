"""What the demo's conversations used, asked of the router once its books are past their last turns.

On a machine whose CPU tells its energy it would be measured; the demo does not count on that and
has it modelled: the watts that a profile has for an L4, times the seconds that the batches took on
this CPU. So the joules show where energy goes, and are no machine's.
"""

import json
import time
import urllib.request
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.demo.play import PlayedConversation

PROFILE = "l4-qwen3-0.6b"
SETTINGS = {"meter": "model", "interval_s": 0.5}
WAIT_S = 20.0
_TITLES = (
    "",
    "J per\nconver-\nsation",
    "\nJ per\nturn",
    "J per\noutput\ntoken",
    "mJ per\ncounted\ntoken",
    "of it\nprefill,\nappend, decode",
    "\n\norigin",
)


def ask_energy(url: str, played: list[PlayedConversation]) -> None:
    """Note what each conversation used, as soon as that is final; nothing where it is not told."""
    deadline = time.monotonic() + WAIT_S
    for conversation in played:
        while conversation.name is not None:
            told = _described(url, conversation.name).get("energy")
            conversation.energy = told
            if told is not None and told["is_final"]:
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.3)


def energy_table(runs: dict[str, list[PlayedConversation]]) -> Table | None:
    """Joules per conversation, turn, output token and counted token, each with its origin."""
    table = Table(title="Energy of the turns, idle left out", box=SIMPLE_HEAD, pad_edge=False)
    for title in _TITLES:
        table.add_column(title, justify="right", no_wrap=True)
    rows = {name: energy_json(played) for name, played in runs.items()}
    for name, row in rows.items():
        if row is not None:
            shares = (row["phases"].get(p, 0.0) for p in ("prefill", "append_prefill", "decode"))
            table.add_row(
                name,
                f"{row['j_per_conversation']:.1f}",
                f"{row['j_per_turn']:.2f}",
                f"{row['j_per_output_token']:.3f}",
                f"{1e3 * row['j_per_counted_token']:.2f}",
                " ".join(f"{share / row['joules']:4.0%}" for share in shares),
                row["origin"] + ("" if row["is_final"] else ", not final"),
            )
    return table if table.rows else None


def energy_json(played: list[PlayedConversation]) -> dict[str, Any] | None:
    """The same for a program; None where nothing was told. Counted: prompt and output."""
    told = [conversation.energy for conversation in played if conversation.energy is not None]
    turns = [turn for conversation in played for turn in conversation.turns]
    joules = sum(energy["joules"] for energy in told)
    if len(told) != len(played) or not joules:
        return None
    phases: dict[str, float] = {}
    for energy in told:
        for phase, part in energy["phases"].items():
            phases[phase] = phases.get(phase, 0.0) + part
    output = sum(turn.output_tokens for turn in turns)
    return {
        "joules": joules,
        "phases": phases,
        "j_per_conversation": joules / len(played),
        "j_per_turn": joules / len(turns),
        "j_per_output_token": joules / output,
        "j_per_counted_token": joules / (output + sum(turn.prompt_tokens for turn in turns)),
        "origin": "modelled" if any(e["origin"] == "modelled" for e in told) else "measured",
        "split": "attributed" if any(e["split"] == "attributed" for e in told) else "own",
        "is_final": all(energy["is_final"] for energy in told),
    }


def _described(url: str, name: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/conversations/{name}", timeout=10) as answer:
        body: dict[str, Any] = json.loads(answer.read())
        return body
