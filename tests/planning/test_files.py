"""Inventory and workload files are read strictly, and say what is wrong."""

from pathlib import Path

import pytest

from conserve_sglang.core.errors import PlanError
from conserve_sglang.core.worker import Role
from conserve_sglang.planning import load_inventory, load_workload

SAMPLES = Path(__file__).parents[1] / "traces" / "samples"
INVENTORY = """
schema_version: 1
model: {path: Qwen/Qwen3-8B}
tiers:
  - {name: a40, gpu: A40, hosts: [{name: box, gpus: 4}], power_caps_w: [null, 200], tp: [1, 2]}
  - name: l4
    gpu: L4
    hosts: [{name: one, gpu_ids: [2, 3]}, {name: two, gpus: 1}]
    roles: [decode]
"""
GENERATED = "schema_version: 1, generator: claude-code, conversations_per_s: 1"


def written(folder: Path, text: str, name: str = "file.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_an_inventory_is_read(tmp_path: Path) -> None:
    inventory = load_inventory(written(tmp_path, INVENTORY))
    a40, l4 = inventory.tiers
    assert inventory.num_gpus == 7
    assert (a40.power_caps_w, a40.tps, len(a40.roles)) == ((None, 200), (1, 2), 3)
    assert l4.roles == (Role.DECODE,)
    assert [(host.name, host.gpu_ids) for host in l4.hosts] == [("one", (2, 3)), ("two", (0,))]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tp: [1, 2]", "tp: [3]", "tier a40: tp: 3 is no power of two"),
        ("gpus: 4", "gpus: 4, gpu_ids: [1]", "host box: give either gpus or gpu_ids"),
        ("gpu_ids: [2, 3]", "gpu_ids: [2, 2]", "host one: a GPU stands there twice"),
        ("name: l4", "name: a40", "two have the same name"),
        ("power_caps_w", "power_cap_w", "unknown field; did you mean power_caps_w"),
        ("roles: [decode]", "roles: [think]", "roles"),
        (
            "[null, 200]",
            "[null, 90]",
            "tier a40: power_caps_w: 90 W is less than the 100 W",
        ),
        ("[null, 200]", "[150], least_power_cap_w: 160", "150 W is less than the 160 W"),
        ("[null, 200]", "[null, 900]", "tier a40: power_caps_w: 900 W is more than the 300 W"),
        (
            "{name: two, gpus: 1}",
            "{name: one, gpus: 1}",
            "tier l4: hosts: one stands there twice; write all its GPUs into one",
        ),
        ("{name: two, gpus: 1}", "{name: two, gpu_ids: []}", "host two: has no GPU"),
        (
            "{name: two, gpus: 1}",
            "{name: box, gpu_ids: [3, 4]}",
            "tiers a40 and l4: both have GPU 3 of box; say with gpu_ids",
        ),
        ("schema_version: 1", "schema_version: 2", "schema_version"),
    ],
)
def test_a_wrong_inventory_says_what_is_wrong(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = written(tmp_path, INVENTORY.replace(old, new))
    with pytest.raises(PlanError, match=message) as caught:
        load_inventory(path)
    assert str(path) in str(caught.value)


def test_two_tiers_may_share_a_host_but_no_gpu_of_it(tmp_path: Path) -> None:
    shared = INVENTORY.replace("{name: two, gpus: 1}", "{name: box, gpu_ids: [4, 5]}")
    assert load_inventory(written(tmp_path, shared)).num_gpus == 8
    local = INVENTORY.replace("name: box", "name: localhost").replace(
        "name: two", "name: 127.0.0.1"
    )
    with pytest.raises(PlanError, match=r"both have GPU 0 of 127\.0\.0\.1"):
        load_inventory(written(tmp_path, local))


def test_tool_gaps_are_told_at_the_level_that_is_asked_for(tmp_path: Path) -> None:
    text = """
    schema_version: 1
    shape: {turns: 5, first_input_tokens: 1000, append_tokens: 50, output_tokens: 20, gap_s: 30}
    conversations_per_s: 1
    """
    load = load_workload(written(tmp_path, text))
    assert load.gaps_s(0.95) == 120
    code = load_workload(written(tmp_path, f"{{{GENERATED}}}"))
    sums = sorted(sum(turn.gap_s for turn in plan.turns[1:]) for plan in code.conversations)
    assert code.gaps_s(0.5) < code.gaps_s(0.95) < sums[-1]
    assert sum(one <= code.gaps_s(0.95) for one in sums) >= 0.95 * len(sums)


def test_a_shape_is_one_conversation_played_over_and_over(tmp_path: Path) -> None:
    text = """
    schema_version: 1
    shape: {turns: 3, first_input_tokens: 1000, append_tokens: 50, output_tokens: 20, gap_s: 2}
    conversations_per_s: 0.5
    """
    load = load_workload(written(tmp_path, text))
    (plan,) = load.conversations
    assert [(t.input_tokens, t.shared_tokens, t.gap_s) for t in plan.turns] == [
        (1000, 0, 0.0),
        (1070, 1020, 2.0),
        (1140, 1090, 2.0),
    ]
    played = list(load.sample(400, 0.5, seed=1))
    assert len({plan.conversation_id for plan in played}) == 400
    assert played[-1].arrived_at_s == pytest.approx(800, rel=0.2)
    assert load.tokens_per_conversation == 1020 + 1090 + 1160


def test_a_trace_keeps_its_rhythm_at_another_rate() -> None:
    load = load_workload(SAMPLES / "conversations.jsonl", rate_per_s=2.0)
    assert load.has_own_times
    assert load.rate_per_s == 2.0
    first, *_, last = load.sample(len(load.conversations), 2.0, seed=0)
    span = last.arrived_at_s - first.arrived_at_s
    assert span == pytest.approx((len(load.conversations) - 1) / 2.0)
    assert load.source.endswith("2 conversations, 5 lines not used (line 4, 5, 6, 7, 8)")


def test_the_lowest_cap_is_the_cards_own_or_what_the_inventory_says(tmp_path: Path) -> None:
    text = INVENTORY.replace("gpu: L4", "gpu: L40S")
    a40, l40s = load_inventory(written(tmp_path, text)).tiers
    assert (a40.least_cap_w, l40s.least_cap_w) == (100, None)
    told = text.replace("roles: [decode]", "least_power_cap_w: 110")
    assert load_inventory(written(tmp_path, told)).tiers[1].least_cap_w == 110


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_load_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(PlanError, match="give how many conversations come a second"):
        load_workload(SAMPLES / "conversations.jsonl", rate_per_s=rate)


@pytest.mark.parametrize("generator", ["mini-swe", "claude-code"])
def test_generators_make_the_same_conversations_each_time(tmp_path: Path, generator: str) -> None:
    text = f"{{schema_version: 1, generator: {generator}, conversations_per_s: 1, max_turns: 4}}"
    one, two = (load_workload(written(tmp_path, text)) for _ in range(2))
    assert one.conversations == two.conversations
    assert max(len(plan.turns) for plan in one.conversations) <= 4


def test_a_window_cuts_conversations(tmp_path: Path) -> None:
    text = "{schema_version: 1, generator: mini-swe, conversations_per_s: 1, window_tokens: 16000}"
    load = load_workload(written(tmp_path, text))
    whole = [turn.input_tokens + turn.output_tokens for p in load.conversations for turn in p.turns]
    assert max(whole) <= 16_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{schema_version: 1, generator: mini-swe}", "conversations_per_s: missing"),
        ("{schema_version: 1}", "give one of trace, generator and shape"),
        ("{schema_version: 1, generator: best}", "generator"),
        (
            "{schema_version: 1, generator: mini-swe, conversations_per_s: 1, window_tokens: 100}",
            "no conversation fits a window of 100 tokens",
        ),
    ],
)
def test_a_wrong_workload_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        load_workload(written(tmp_path, text))


def test_what_was_scaled_and_left_out_is_told(tmp_path: Path) -> None:
    for size, told in {
        "window_tokens: 8192, fitting: 0.9": "generator mini-swe; all lengths times 0.",
        "window_tokens: 12000": "of 2000 that do not fit 12,000 tokens left out",
        "window_tokens: 1000000": "generator mini-swe",
    }.items():
        path = tmp_path / "w.yaml"
        path.write_text(
            f"{{schema_version: 1, generator: mini-swe, conversations_per_s: 1, {size}}}\n"
        )
        assert told in load_workload(path).source
    assert load_workload(path).source == "w.yaml: generator mini-swe"


def test_files_of_a_folder_that_were_not_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("You may.\n")
    line = '{"conversation_id": "a", "turns": [{"input_tokens": 9, "output_tokens": 5}]}\n'
    (tmp_path / "a.jsonl").write_text(line)
    source = load_workload(tmp_path, 1.0).source
    assert source.endswith(": 1 conversation, files in no known format: 1")
