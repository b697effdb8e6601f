"""The conversations the demo plays: an agent that looks at files, logs and tests, then reports.

The model is tiny and random, so what it says is noise; the shape is an agent's. A long first
prompt, turns that must call a tool (the grammar makes the noise a valid call), the tools' results
as short appends, and a last turn in plain text. The list of tools is the same in each turn, as
agents send it: it stands at the front of the prompt, so changing it would change every prefix.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

ToolCall = tuple[str, str]
"""Name and arguments (JSON text)."""

_FILES = ["app/cache.py", "app/config.py", "app/http.py", "app/jobs.py", "app/store.py"]
_SERVICES = ["api", "billing", "search", "worker"]
_SUITES = ["fast", "slow", "storage"]


def _tool(name: str, description: str, **choices: list[str]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {
                    field: {"type": "string", "enum": values} for field, values in choices.items()
                },
                "required": list(choices),
                "additionalProperties": False,
            },
        },
    }


TOOLS = [
    _tool("read_file", "Read a source file of the repository.", path=_FILES),
    _tool("search_logs", "Search the last hour of a service's log.", service=_SERVICES),
    _tool("run_tests", "Run one suite of tests and return the summary.", suite=_SUITES),
]

SYSTEM = (
    "You are a maintenance agent for a small web service. Work in steps. In each step call"
    " exactly one tool, read its result, and decide what to look at next. Never guess what a"
    " file holds: read it. Never claim that a test passes: run it. When you know the cause,"
    " write a short report for the person who opened the ticket: what was wrong, how you know,"
    " and what should be changed. Do not touch configuration of production systems."
)

TICKETS = [
    "Since the last release the search page answers with an empty list when two filters are"
    " combined. One filter alone works. The log of the search service shows no error.",
    "Invoices are sent twice to some customers. It began on Monday, only for accounts with more"
    " than one address. The billing worker was restarted in that night.",
    "The nightly clean-up job deletes files that are still referenced. We have restored them"
    " from the backup, but the job runs again tonight and must be fixed or stopped.",
    "A request with a header larger than eight kilobytes makes the API process exit. We see it"
    " about once a day, always from the same client, and the process is started again.",
]

NUM_TOOL_TURNS = 4
NUM_TURNS = NUM_TOOL_TURNS + 1
MAX_ANSWER_TOKENS = 40
MAX_CALL_TOKENS = 120


@dataclass(frozen=True, slots=True)
class Ticket:
    """One conversation: its number, its opening messages, and the tools of all its turns."""

    number: int
    opening: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = tuple(TOOLS)


def tickets() -> list[Ticket]:
    """All conversations of the demo."""
    return [
        Ticket(
            number,
            (
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": f"Ticket {number}. {text}"},
            ),
        )
        for number, text in enumerate(TICKETS, start=1)
    ]


def request_options(turn_index: int, tools: Sequence[dict[str, Any]] = TOOLS) -> dict[str, Any]:
    """What a turn (counted from 1) asks of the model, beside its messages."""
    options: dict[str, Any] = {"temperature": 0, "tools": list(tools)}
    if turn_index <= NUM_TOOL_TURNS:
        options |= {"tool_choice": "required", "parallel_tool_calls": False}
        options["max_tokens"] = MAX_CALL_TOKENS
    else:
        options["max_tokens"] = MAX_ANSWER_TOKENS
    return options


def tool_result(call: ToolCall) -> str:
    """What a tool answers; the same call always gets the same answer."""
    name, arguments = call
    value = "".join(json.loads(arguments).values())
    if name == "read_file":
        return f"# {value}\ndef handle(request):\n    return lookup(request.filters[-1:])\n"
    if name == "search_logs":
        return f"{value}: 3 warnings, 0 errors; slowest request 812 ms, retries 2"
    return f"suite {value}: 41 passed, 1 failed (test_two_filters), 0.8 s"
