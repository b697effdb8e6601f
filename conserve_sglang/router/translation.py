"""The seam for clients that speak another API than the workers: what a translator offers.

A request of another API becomes a chat completion, which is a turn like any other; its answer is
told in the client's words only where it leaves for the client. Everything between, the placing, the
history, the legs and the retries, knows chat completions alone.
"""

from typing import ClassVar, Protocol

from conserve_sglang.router.problem import Problem


class Voice(Protocol):
    """How one request's errors are told, and the header lines each of its answers has."""

    header_lines: bytes

    def problem(self, problem: Problem) -> bytes:
        """An error as a whole body."""
        ...


class Translation(Voice, Protocol):
    """One request of another API, once it has become a chat completion; `path` is that API's."""

    path: ClassVar[str]
    conversation_name: str | None

    def feed(self, data: bytes, is_last: bool) -> bytes:
        """What goes to the client for the next bytes of the chat answer."""
        ...

    def problem_event(self, problem: Problem) -> bytes:
        """An error as an event, for a stream that has begun."""
        ...


class UnreadableAnswer(Exception):
    """The chat answer makes no sense; raised before anything of it went to the client."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem
