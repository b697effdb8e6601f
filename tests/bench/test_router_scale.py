"""The bench of live conversations plays what it says it does."""

from pathlib import Path

import pytest

from bench.router_scale import NUM_TURNS, Scale


@pytest.mark.parametrize("named", [True, False])
async def test_each_conversation_has_all_its_turns(tmp_path: Path, named: bool) -> None:
    scale = Scale(tmp_path, 2)
    scale.meet()
    for turn in range(NUM_TURNS):
        for names in ([0, 1, 2], [3, 4]):
            await scale.play(names, turn, named=named)
    brain = scale.service.brain
    keys = list(brain.conversations.keys())
    assert len(keys) == brain.dispatcher.num_conversations == 5
    for key in keys:
        conversation = brain.conversations.by_key(key)
        assert conversation is not None
        told = brain.journal.told(conversation)
        assert [each["turn"] for each in told] == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13]
        assert [each["reason"] for each in told] == ["first_turn"] + ["pinned"] * 11
        assert told[0]["tokens"]["prompt"] < told[-1]["tokens"]["prompt"]
