"""A planned map has what its budget needs; an inventory's own words are read before planning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conserve_sglang.core.errors import TierMapError
from conserve_sglang.core.tier import PolicyChoice, TierMap
from conserve_sglang.core.worker import Role
from conserve_sglang.planning.inventory import Host
from conserve_sglang.planning.problem import Config
from conserve_sglang.planning.request import Request
from conserve_sglang.planning.tier_map import budget_note, check_wording, checked, tier_map_text
from tests.planning.builders import INVENTORY, a_request, hardware

COLOCATED = PolicyChoice(name="colocated", params={})


def a_fleet() -> dict[Config, int]:
    return {next(one for one in hardware() if one.tier == "a40").config(Role.MIXED): 2}


def asked(router: dict[str, object] | None = None, host: str = "box") -> Request:
    """A request with a power budget; its GPUs are on `host`."""
    tier = replace(INVENTORY.tiers[0], hosts=(Host(name=host, gpu_ids=(0, 1)),))
    inventory = replace(INVENTORY, tiers=(tier,), router=router or {})
    own = tuple(one for one in hardware() if one.tier == tier.name)
    return a_request(power_budget_w=700.0, inventory=inventory, hardware=own)


def planned(request: Request) -> TierMap:
    text = tier_map_text(request, a_fleet(), COLOCATED)
    return checked(text, source="planned", folder=Path())


@pytest.mark.parametrize(
    "request_",
    [asked(host="127.0.0.1"), asked({"admin_key_env": "ADMIN_KEY"})],
    ids=["on this machine", "with a key"],
)
def test_a_budget_that_can_be_watched_comes_with_energy(request_: Request) -> None:
    tier_map = planned(request_)
    assert tier_map.power_budget_w == 700
    assert tier_map.energy is not None
    assert "kept by the router" in budget_note(request_, a_fleet())


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (asked(), "admin_key_env: VARIABLE, which names the key that its agent on box asks for"),
        (
            asked({"admin_key_env": "K", "state": {"redis": "redis://x"}}),
            "as replicas of it (router.state.redis) would each move the caps",
        ),
    ],
    ids=["far, without a key", "replicas"],
)
def test_a_budget_that_cannot_be_watched_says_what_to_add(request_: Request, why: str) -> None:
    assert planned(request_).energy is None
    assert why in budget_note(request_, a_fleet())
    text = tier_map_text(request_, a_fleet(), COLOCATED)
    comments = " ".join(line[2:] for line in text.splitlines() if line.startswith("# "))
    assert why in comments


def test_no_budget_needs_no_note() -> None:
    request = replace(asked(host="127.0.0.1"), power_budget_w=None)
    assert planned(request).energy is None
    assert budget_note(request, a_fleet()) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": {"control_host": "0.0.0.0"}}, "router.control_host: 0.0.0.0 is no loopback"),
        ({"router": {"porrt": 1}}, "router.porrt: unknown field; did you mean port"),
        (
            {"tiers": (replace(INVENTORY.tiers[0], sglang_flags={"mem_fraction_static": 0.8}),)},
            "sglang_flags.mem_fraction_static: write it as mem-fraction-static",
        ),
    ],
)
def test_an_inventorys_own_words_are_read_before_anything_is_planned(
    changes: dict[str, Any], message: str
) -> None:
    request = asked()
    check_wording(request, "inventory.yaml as a tier map", Path())
    wrong = replace(request, inventory=replace(request.inventory, **changes))
    with pytest.raises(TierMapError, match=message) as caught:
        check_wording(wrong, "inventory.yaml as a tier map", Path())
    assert str(caught.value).startswith("inventory.yaml as a tier map: ")
