"""The fidelity bench compares what it says it compares."""

import io
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import bench.sim_fidelity.__main__ as program
from bench.sim_fidelity import compare, live, machine, report, simulated
from bench.sim_fidelity.cluster import deployments
from bench.sim_fidelity.live import LiveConversation, LiveTurn, Run
from bench.sim_fidelity.machine import Load, LoadWatch, family_of
from bench.sim_fidelity.phases import PhaseError, handoff_error, phase_errors
from bench.sim_fidelity.sharing import Slowdown
from bench.sim_fidelity.simulated import NOTHING, Fronts
from conserve_sglang.profiles import FrontPoint, shipped_profile
from conserve_sglang.sim import perf_model_of

ROOT = Path(__file__).parents[2]
MAP = ROOT / "tier_maps" / "cpu_local.yaml"
PROFILE = shipped_profile("a40-qwen3-0.6b-300w")
PERF = perf_model_of(PROFILE)
TURN = LiveTurn(
    prompt_tokens=1000,
    cached_tokens=0,
    output_tokens=11,
    prefiller="prefill-0",
    decoder="decode-0",
    ttft_s=0.2,
    tbt_s=0.01,
    e2e_s=0.3,
)


def a_run(*ttfts_s: float, policy: str = "conserve") -> Run:
    """Conversations of one turn each, far apart."""
    return Run(
        policy=policy,
        conversations=tuple(
            LiveConversation(
                arrived_at_s=100.0 * number,
                ttfet_s=ttft_s,
                e2e_s=ttft_s + 0.1,
                turns=(replace(TURN, ttft_s=ttft_s, e2e_s=ttft_s + 0.1),),
            )
            for number, ttft_s in enumerate(ttfts_s)
        ),
        load_average=0.5,
    )


def test_errors_are_relative_to_what_was_live() -> None:
    pairs = [(a_run(1.0, 2.0, 4.0), a_run(1.1, 1.0, 4.0))]
    found = compare.errors_of(pairs, compare.MEASURES["TTFT"])
    assert found.median_error == pytest.approx(0.1)
    assert found.bias == pytest.approx(0.0)
    assert found.p10 == pytest.approx(-0.5)
    assert found.p90 == pytest.approx(0.1)
    assert found.of_means == pytest.approx(6.1 / 7 - 1)
    assert found.noise == 0.0


def test_noise_is_how_far_runs_lie_from_each_other() -> None:
    pairs = [(a_run(value), a_run(1.0)) for value in (0.8, 1.0, 1.2)]
    assert compare.errors_of(pairs, compare.MEASURES["TTFT"]).noise == pytest.approx(0.2)


def test_only_policies_that_differ_beyond_noise_are_put_in_order() -> None:
    by_policy = {
        "a": [(a_run(1.0), a_run(3.0)), (a_run(1.2), a_run(3.0))],  # 1.1 within 9 %
        "b": [(a_run(1.15), a_run(1.0))],
        "c": [(a_run(2.0), a_run(2.0))],
    }
    order = compare.order_of(by_policy, compare.MEASURES["TTFT"])
    assert order.live == ("a", "b", "c")
    assert order.simulated == ("b", "c", "a")
    assert (order.pairs_alike, order.num_pairs) == (1, 2)  # a and b count as equal


def test_a_lone_turn_takes_in_the_simulator_what_it_was_measured_to_take() -> None:
    perf = PERF
    fronts = Fronts(turn_s=0.02, handoff_s=0.1, step_s=0.001)
    run = simulated.simulate(a_run(0.2, 0.2), MAP, PROFILE, fronts)
    for one in run.conversations:
        expected = 0.02 + perf.prefill(0, 1000) + perf.transfer_s(1000) + 0.1
        assert one.turns[0].ttft_s == pytest.approx(expected, rel=0.02)
        step_s = perf.decode_step(1, 1006) + 0.001
        assert one.turns[0].tbt_s == pytest.approx(step_s, rel=0.01)
        assert one.e2e_s == pytest.approx(one.turns[0].e2e_s)
    plain = simulated.simulate(a_run(0.2), MAP, PROFILE, NOTHING)
    assert plain.conversations[0].ttfet_s < run.conversations[0].ttfet_s - 0.1


def test_pairs_have_met_before_the_runs_that_are_compared() -> None:
    slow = replace(PROFILE, first_handoff_s=5.0)
    assert simulated.simulate(a_run(0.2), MAP, slow, NOTHING) == simulated.simulate(
        a_run(0.2), MAP, PROFILE, NOTHING
    )


def test_fronts_are_what_lone_turns_took_beyond_the_profile() -> None:
    perf = PERF
    moved_s = perf.prefill(0, 1000) + perf.transfer_s(1000)
    moved = replace(TURN, ttft_s=0.3 + moved_s, tbt_s=perf.decode_step(1, 1005))
    tail = replace(
        TURN,
        prefiller=None,
        cached_tokens=900,
        ttft_s=0.05 + perf.prefill(900, 1000),
        tbt_s=perf.decode_step(1, 1005) + 0.002,
    )
    one = LiveConversation(arrived_at_s=0.0, ttfet_s=1.0, e2e_s=2.0, turns=(moved, tail, tail))
    fronts = simulated.fronts_of([Run(policy="x", conversations=(one,), load_average=0.0)], perf)
    assert fronts.turn_s == pytest.approx(0.05)
    assert fronts.handoff_s == pytest.approx(0.25)
    assert fronts.step_s == pytest.approx(0.002)


def test_conversations_have_nothing_in_common_but_their_form() -> None:
    tickets = live.tickets(3)
    marks = {ticket.tools[0]["function"]["description"][:7] for ticket in tickets}
    assert len(marks) == live.NUM_CONVERSATIONS
    assert len({len(mark) for mark in marks}) == 1
    assert live.arrivals(1) == live.arrivals(1) != live.arrivals(2)
    assert live.arrivals(1)[0] == 0.0


def test_all_deployments_have_three_servers() -> None:
    for deployment in deployments():
        assert sum(tier["count"] for tier in deployment.tiers) == 3


def test_the_family_of_this_process_holds_it() -> None:
    assert os.getpid() in family_of(os.getppid())


def lone(*ttfts_s: float, prefiller: str | None = "prefill-0") -> Run:
    """Lone conversations of one turn each."""
    run = a_run(*ttfts_s)
    return replace(
        run,
        is_lone=True,
        conversations=tuple(
            replace(one, turns=tuple(replace(turn, prefiller=prefiller) for turn in one.turns))
            for one in run.conversations
        ),
    )


def test_what_a_profile_tells_of_requests_and_handoffs_is_no_front() -> None:
    told = replace(
        PROFILE,
        request=(FrontPoint(tokens=1000, seconds=0.01),),
        handoff=(FrontPoint(tokens=1000, seconds=0.08),),
    )
    perf = perf_model_of(told)
    turn_s = 0.08 + perf.prefill(0, 1000)
    fronts = simulated.fronts_of([lone(turn_s), lone(0.01 + turn_s - 0.08, prefiller=None)], perf)
    assert fronts.handoff_s == pytest.approx(0.0, abs=1e-9)
    again = simulated.simulate(lone(turn_s, turn_s), MAP, told, NOTHING)
    assert [one.turns[0].ttft_s for one in again.conversations] == pytest.approx([turn_s] * 2)


def test_servers_that_share_cores_are_slower_only_together() -> None:
    """Two conversations at once, on a decoder each: decode takes twice as long while both do."""
    pair = replace(
        a_run(0.2, 0.2),
        conversations=tuple(
            replace(one, arrived_at_s=0.0, turns=(replace(TURN, output_tokens=200),))
            for one in a_run(0.2, 0.2).conversations
        ),
    )
    twice = Slowdown(prefill=(1.0, 1.0), decode=(1.0, 2.0))
    apart, shared = (
        [
            one.turns[0].tbt_s
            for one in simulated.simulate(run, MAP, PROFILE, NOTHING, s).conversations
        ]
        for run, s in ((pair, Slowdown(prefill=(1.0,), decode=(1.0,))), (pair, twice))
    )
    for alone_s, beside_s in zip(apart, shared, strict=True):
        assert 1.7 < beside_s / alone_s <= 2.01
    kept = simulated.simulate(replace(pair, is_lone=True), MAP, PROFILE, NOTHING, twice)
    assert [one.turns[0].tbt_s for one in kept.conversations] == pytest.approx(apart, rel=0.01)


def test_more_servers_than_were_measured_are_as_slow_as_the_most() -> None:
    slowdown = Slowdown(prefill=(1.0, 1.5), decode=(1.0, 1.2))
    assert [slowdown.of(count) for count in (0, 1, 2, 3)] == [
        (1, 1),
        (1, 1),
        (1.5, 1.2),
        (1.5, 1.2),
    ]


def by_phase(errors: list[PhaseError]) -> dict[tuple[str, str], PhaseError]:
    return {(error.kind, error.phase): error for error in errors}


def test_errors_are_told_by_kind_of_turn_and_phase() -> None:
    def of(ttft_s: float, e2e_s: float) -> Run:
        first = replace(TURN, ttft_s=ttft_s, e2e_s=e2e_s)
        tail = replace(first, prefiller=None, cached_tokens=900, ttft_s=ttft_s / 2, e2e_s=e2e_s)
        one = LiveConversation(arrived_at_s=0.0, ttfet_s=1.0, e2e_s=2.0, turns=(first, tail))
        return Run(policy="conserve", conversations=(one,), load_average=0.0)

    found = by_phase(phase_errors([(of(0.2, 0.4), of(0.1, 0.4))], PERF))
    first = found["turn 1, handed off", "first token"]
    assert (first.median_error, first.bias) == (0.5, -0.5)
    assert first.told["prefill"] == PERF.prefill(0, 1000)
    assert first.told["handoff"] == PERF.transfer_s(1000)
    later = found["turn 1, handed off", "later tokens"]
    assert later.bias == pytest.approx(0.5)
    assert found["tail, local", "first token"].told["prefill"] == PERF.prefill(900, 1000)
    assert found["tail, local", "first token"].told["handoff"] == 0.0


def test_a_handoff_by_itself_is_what_lies_between_the_two_kinds_of_first_turns() -> None:
    pairs = [
        (lone(0.30), lone(0.25)),
        (lone(0.20, prefiller=None), lone(0.20, prefiller=None)),
    ]
    found = handoff_error(pairs)
    assert found is not None
    assert (found.live_s, found.simulated_s) == pytest.approx((0.10, 0.05))
    assert found.bias == pytest.approx(-0.5)
    assert handoff_error(pairs[:1]) is None
    assert handoff_error([(a_run(0.3), a_run(0.3)), (a_run(0.2), a_run(0.2))]) is None


def watch_of(*others_cores: float) -> LoadWatch:
    return LoadWatch([Load(f"part {n}", 10.0, cores, 3.0) for n, cores in enumerate(others_cores)])


def test_on_a_loaded_machine_there_is_no_result() -> None:
    assert watch_of(0.0, 0.2, 0.1).why_no_result() is None
    why = watch_of(0.0, 1.5, 0.1).why_no_result()
    assert why is not None
    assert "others used 0.53" in why
    assert "part 1" in why
    assert watch_of().why_no_result() is not None


def test_what_is_no_result_is_not_saved_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[str] = []
    monkeypatch.setattr(program, "RECORD", tmp_path / "record.json")
    monkeypatch.setattr(program, "save", lambda name, record: saved.append(name))
    with pytest.raises(SystemExit, match=r"NOT A RESULT.*others used 1\.00"):
        program.conclude({}, watch_of(1.0), Console(quiet=True), is_saved=True)
    assert json.loads((tmp_path / "record.json").read_text())["is_result"] is False
    assert not saved
    program.conclude({}, watch_of(0.0), Console(quiet=True), is_saved=True)
    record = json.loads((tmp_path / "record.json").read_text())
    assert (record["is_result"], record["load"][0]["load_average"]) == (True, 3.0)
    assert saved == ["sim_fidelity"]


def test_our_own_work_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three processor seconds in two, one was ours."""
    times_s = {"monotonic": iter([10.0, 12.0]), "busy": iter([50.0, 53.0]), "own": iter([5.0, 6.0])}
    clock = SimpleNamespace(monotonic=lambda: next(times_s["monotonic"]))
    monkeypatch.setattr("bench.sim_fidelity.machine.time", clock)
    monkeypatch.setattr(machine, "busy_s", lambda: next(times_s["busy"]))
    monkeypatch.setattr(machine, "family_s", lambda pid: next(times_s["own"]))
    watch = LoadWatch()
    with watch.part("busy"):
        pass
    assert (watch.parts[0].seconds, watch.parts[0].others_cores) == (2.0, 1.0)


def test_processor_time_is_read_where_it_is_spent() -> None:
    own_s, all_s = machine.family_s(os.getpid()), machine.busy_s()
    until_s = time.process_time() + 0.3
    while time.process_time() < until_s:
        pass
    assert machine.family_s(os.getpid()) - own_s > 0.25
    assert machine.busy_s() - all_s > 0.25


def test_a_whole_report_says_how_the_goal_is_met() -> None:
    pairs = {"conserve": [(a_run(1.0, 1.0), a_run(1.1, 1.1))]}
    console = Console(file=io.StringIO(), record=True, width=130)
    record = report.results(pairs, PERF)
    report.print_all("at once", pairs, PERF, console)
    assert {row["phase"] for row in record["phases"]} == {"first token", "later tokens"}
    assert "median error at most 15% in 5 of 5 (policy, measure)" in console.export_text()
