"""What a tier map names and does not hold: each thing that is missing is said, with what to do."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from conserve_sglang.core.tier import TierMap
from conserve_sglang.tiermap import parse_tier_map
from conserve_sglang.tiermap.keys import new_key
from conserve_sglang.tiermap.outside import router_problems, worker_problems
from tests.fakes.certificates import Authority

TEXT = """
schema_version: 1
model: {path: ./model}
tiers:
  - {name: m, role: mixed, gpu: cpu, base_port: 1, sglang_flags: {ssl-certfile: /no/c.pem}}
  - {name: far, role: mixed, gpu: cpu, base_port: 1, host: far, sglang_flags: {ssl-keyfile: /no/k}}
policy: {name: colocated}
router:
  auth: {keys_file: keys.yaml}
  tls: {cert_file: router.cert.pem, key_file: router.key.pem}
  worker_tls: {ca_file: ca.pem}
  admin_key_env: ADMIN
  worker_api_key_env: WORKER
  state: {STATE}
"""
REDIS = "{redis: 'redis://h/0', redis_password_env: REDIS}"
ENVIRON = {"ADMIN": "a", "WORKER": "w", "REDIS": "r"}


def a_map(folder: Path, state: str = REDIS) -> TierMap:
    text = TEXT.replace("{STATE}", state)
    return parse_tier_map(text, source=str(folder / "map.yaml"), folder=folder)


@pytest.fixture
def complete(tmp_path: Path) -> TierMap:
    """A map that lacks nothing for its router."""
    Authority(tmp_path).issue()
    new_key(tmp_path / "keys.yaml", "a")
    return a_map(tmp_path)


def fields(problems: list[str]) -> list[str]:
    return [problem.split(": ")[0] for problem in problems]


def test_nothing_is_said_where_nothing_is_missing(complete: TierMap) -> None:
    assert list(router_problems(complete, ENVIRON)) == []


def test_everything_a_router_misses_is_said_at_once(tmp_path: Path) -> None:
    found = list(router_problems(a_map(tmp_path), {}))
    assert fields(found) == [
        "router.worker_api_key_env",
        "router.admin_key_env",
        "router.state.redis_password_env",
        "router.auth.keys_file",
        "router.tls.cert_file",
        "router.tls.key_file",
        "router.worker_tls.ca_file",
    ]
    assert f"keys new --tenant NAME --file {tmp_path}/keys.yaml" in found[3]
    assert "router.key.pem cannot be read: No such file or directory. Put it there" in found[5]


def _no_key(folder: Path) -> None:
    (folder / "router.key.pem").write_text("no key")


def _key_of_another(folder: Path) -> None:
    (folder / "other").mkdir()
    other = Authority(folder / "other").issue()
    Path(other.key_file).replace(folder / "router.key.pem")


def _no_authority(folder: Path) -> None:
    (folder / "ca.pem").write_text("nobody")


def _wrong_keys(folder: Path) -> None:
    (folder / "keys.yaml").write_text("tenants: oops")


def _open_keys(folder: Path) -> None:
    (folder / "keys.yaml").chmod(0o666)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_no_key, "router.tls: .* are not a certificate and its key in PEM form"),
        (_key_of_another, "router.tls: .* are not a certificate and its key in PEM form"),
        (_no_authority, "router.worker_tls.ca_file: .* holds no certificates in PEM form"),
        (_wrong_keys, r"router.auth.keys_file: .*keys.yaml: tenants: expected"),
        (_open_keys, "router.auth.keys_file: .* Run chmod go-w"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_too(
    tmp_path: Path, complete: TierMap, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(tmp_path)
    (found,) = router_problems(complete, ENVIRON)
    assert re.match(said, found), found


def test_a_key_that_fits_no_header_is_said_and_not_shown(complete: TierMap) -> None:
    (found,) = router_problems(complete, {**ENVIRON, "ADMIN": "two words"})
    assert "router.admin_key_env" in found
    assert "two words" not in found


def test_a_state_file_needs_a_place(tmp_path: Path, complete: TierMap) -> None:
    (tmp_path / "file").write_text("")
    for path, said in {
        "new/folder/s.sqlite": None,
        "file": None,
        "file/s.sqlite": "cannot be made in",
        ".": "is a folder",
    }.items():
        found = list(router_problems(a_map(tmp_path, f"{{path: {path}}}"), ENVIRON))
        assert [said in each for each in found if said] == ([True] if said else [])
        assert fields(found) == (["router.state.path"] if said else [])


def test_workers_miss_their_model_and_the_files_of_their_own_tier(tmp_path: Path) -> None:
    tier_map = a_map(tmp_path)
    here = [worker for worker in tier_map.workers if worker.host == "127.0.0.1"]
    found = list(worker_problems(tier_map, here, ENVIRON))
    assert fields(found) == ["model.path", "tiers[0].sglang_flags.ssl-certfile"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert fields(list(worker_problems(tier_map, [], {}))) == [
        "router.worker_api_key_env",
        "router.admin_key_env",
    ]
