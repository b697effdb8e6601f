"""The controller's log: written whole, read back, and replayed to the same moves."""

import json
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.core.worker import Role
from conserve_sglang.energy.control_log import ControlLog, read_log, replay
from conserve_sglang.power.control import ControlSettings, PowerController
from conserve_sglang.power.energy_target import EnergySettings
from tests.power.plant import Plant, PlantTier


def a_log(path: Path, seconds: int = 60) -> tuple[ControlSettings, int]:
    """What a controller wrote over a plant; how many moves."""
    settings = ControlSettings(
        power_budget_w=900.0,
        tbt_slo_s=0.1,
        energy=EnergySettings(j_per_output_token=0.5, window_s=5.0),
    )
    plant = Plant(
        [
            PlantTier("p", Role.PREFILL, 1, lambda now: 300.0 if now > 5 else 60.0),
            PlantTier("d", Role.DECODE, 3, lambda now: 290.0 if now > 5 else 60.0),
        ],
        tbt=lambda plant, _: 0.05 if plant["d"].cap_w > 180 else 0.2,
        tokens=lambda *_: 1200,
    )
    controller = PowerController(settings)
    num_moves = 0
    with path.open("w") as file:
        log = ControlLog(lambda line: print(line, file=file), settings)
        for second in range(1, seconds):
            seen = plant.observe(second + 1 / 3)
            moves = controller.handle(seen)
            log.add(seen, moves)
            plant.obey(moves)
            num_moves += len(moves)
    return settings, num_moves


def test_a_log_replays_to_the_same_moves(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    settings, num_moves = a_log(path)
    assert num_moves > 3
    read, steps = read_log(path)
    assert read == settings
    assert sum(len(step.moves) for step in steps) == num_moves
    assert replay(path) == (59, [])


def test_another_move_in_the_log_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    a_log(path)
    lines = path.read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if n and json.loads(line)["moves"])
    changed = json.loads(lines[number])
    changed["moves"][0]["after_w"] += 1
    lines[number] = json.dumps(changed)
    path.write_text("\n".join(lines) + "\n")
    (difference,) = replay(path)[1]
    assert difference.number == number + 1
    assert difference.logged != difference.replayed


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "control.jsonl"
    a_log(path)
    path.write_text(path.read_text()[:-30])
    assert replay(path) == (58, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"version": 9, "settings": {}}\n', "version 9"),
        ('{"version": 1}\n', "line 1"),
        ('{"version": 1, "settings": {}}\n{"seen": 3, "moves": []}\n', "line 2"),
    ],
)
def test_a_bad_log_is_named_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "control.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        replay(path)
