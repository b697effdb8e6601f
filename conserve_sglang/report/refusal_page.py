"""The report of a request that no fleet keeps."""

from collections.abc import Sequence

from conserve_sglang.planning import Infeasible
from conserve_sglang.planning.remedy import MEANING
from conserve_sglang.profiles import Profile
from conserve_sglang.report.options import brief
from conserve_sglang.report.page import command_line, listing, page, paragraph, section

NONE_FOUND = "None was found: other GPUs or another model are needed."


def refusal_page(plan: Infeasible, profiles: Sequence[Profile], command: str) -> str:
    """The whole page; everything it needs is inside."""
    request = plan.request
    load = (
        f"{request.load.rate_per_s:g} conversations/s of {request.load.source}."
        f" Model: {request.inventory.model}. Modelled, none of it measured here."
    )
    nearest = () if plan.nearest is None else (f"The nearest fleet: {brief(plan.nearest)}.",)
    head = [f"{plan.reason[0].upper()}{plan.reason[1:]}.", *nearest]
    changes = [f"{one.text} ({one.evidence})" for one in plan.remedies]
    return page(
        "Plan: none",
        [
            "<h1>No plan</h1>" + "".join(map(paragraph, head)) + paragraph(load, "soft"),
            section(
                "Changes that would help, the smallest first",
                listing(changes or [NONE_FOUND]),
                paragraph(MEANING, "soft"),
            ),
            section(
                "How this was computed",
                listing([f"profile {one.name}: times {one.provenance.kind}" for one in profiles]),
                command_line(command),
            ),
        ],
    )
