"""conserve-sglang keys."""

import json
from pathlib import Path

from conserve_sglang.tiermap.keys import key_digest, load_keys

from .conftest import RunCli


def test_key_is_made_listed_and_revoked(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    made = run_cli("keys", "new", "--tenant", "team-a", "--weight", "2", "--file", file)
    assert made.code == 0
    key = made.out.strip()
    shown = key_digest(key.encode()).hex()[:12]
    listed = run_cli("keys", "list", "--file", file)
    assert "team-a" in listed.out
    assert shown in listed.out
    rows = json.loads(run_cli("keys", "list", "--json", "--file", file).out)
    assert rows == [{"tenant": "team-a", "weight": 2.0, "may_place": False, "keys": [shown]}]
    revoked = run_cli("keys", "revoke", shown, "--file", file)
    assert (revoked.code, revoked.out) == (0, "revoked a key of team-a\n")
    assert load_keys(file)[0].digests == ()
    for ran in (listed, revoked):
        assert key not in ran.out + ran.err


def test_wrong_input_is_exit_code_2(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    assert run_cli("keys", "list", "--file", file).code == 2
    assert run_cli("keys", "new", "--tenant", "A B", "--file", file).code == 2
    run_cli("keys", "new", "--tenant", "a", "--file", file)
    ran = run_cli("keys", "revoke", "00000000", "--file", file)
    assert ran.code == 2
    assert "no key whose hash begins with 00000000" in ran.err
