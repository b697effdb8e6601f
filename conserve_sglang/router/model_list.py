"""The model this deployment serves, as the clients of both APIs list it."""

from typing import Any

from conserve_sglang.router.problem import Problem

PATH = b"/v1/models"


def describe(name: str) -> dict[str, Any]:
    """The model, with the fields of OpenAI's and of Anthropic's shape."""
    ours = {"id": name, "object": "model", "created": 0, "owned_by": "sglang", "root": name}
    theirs = {"type": "model", "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {**ours, **theirs}


def listing(name: str) -> dict[str, Any]:
    """The list of one."""
    page = {"has_more": False, "first_id": name, "last_id": name}
    return {"object": "list", "data": [describe(name)], **page}


def unknown_model(asked: str, served: str) -> Problem:
    """The answer to who asks for another one."""
    message = f"The model {asked[:200]!r} is not served here. Use {served!r}."
    return Problem(status=404, code="model_not_found", message=message, param="model")
