from dataclasses import replace

import pytest

from conserve_sglang.core.errors import NotCapable
from conserve_sglang.core.tier import Model
from conserve_sglang.core.worker import Role
from conserve_sglang.workers.pool import ConnectionPool
from conserve_sglang.workers.probe import WorkerFacts, check_model, check_role, is_ready, read_facts
from tests.fakes.sglang_worker import FakeWorker, Rendezvous

DECODER = WorkerFacts(
    mode="decode",
    kv_capacity_tokens=100_000,
    serves_local_turns=True,
    can_continue=True,
    served_name="tiny",
    version="0.5.23",
)


async def test_worker_tells_what_it_is() -> None:
    async with FakeWorker("decode", Rendezvous()).serve() as worker:
        pool = ConnectionPool("127.0.0.1", worker.port)
        assert await is_ready(pool, 1.0)
        assert await read_facts(pool) == replace(DECODER, incarnation=worker.incarnation)
        pool.close()


async def test_plugin_is_missed() -> None:
    async with FakeWorker("decode", Rendezvous(), has_plugin=False).serve() as worker:
        pool = ConnectionPool("127.0.0.1", worker.port)
        assert not (await read_facts(pool)).serves_local_turns
        pool.close()


@pytest.mark.parametrize(
    ("facts", "role", "needs_plugin", "said"),
    [
        (replace(DECODER, serves_local_turns=False), Role.DECODE, True, "plugin"),
        (replace(DECODER, mode="null"), Role.DECODE, True, "--disaggregation-mode decode"),
        (DECODER, Role.PREFILL, True, "--disaggregation-mode prefill"),
        (DECODER, Role.MIXED, False, "--disaggregation-mode null"),
    ],
)
def test_unfit_worker_is_refused_with_what_to_do(
    facts: WorkerFacts, role: Role, needs_plugin: bool, said: str
) -> None:
    with pytest.raises(NotCapable, match=said):
        check_role(facts, role, needs_plugin=needs_plugin)


@pytest.mark.parametrize(
    ("facts", "role", "needs_plugin"),
    [
        (DECODER, Role.DECODE, True),
        (replace(DECODER, serves_local_turns=False), Role.DECODE, False),
        (replace(DECODER, mode="prefill", serves_local_turns=False), Role.PREFILL, True),
        (replace(DECODER, mode="null", serves_local_turns=False), Role.MIXED, True),
    ],
)
def test_fit_worker_is_taken(facts: WorkerFacts, role: Role, needs_plugin: bool) -> None:
    check_role(facts, role, needs_plugin=needs_plugin)


def test_model_is_compared_by_name_or_path_where_the_worker_says_one() -> None:
    model = Model(path="models/tiny", served_name="tiny")
    for name in ("tiny", "models/tiny", ""):
        check_model(replace(DECODER, served_name=name), model)
    with pytest.raises(NotCapable, match="'other'"):
        check_model(replace(DECODER, served_name="other"), model)
