"""The key file: what is written, what is read, and what is refused."""

import hashlib
import os
import re
import stat
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError, TierMapError
from conserve_sglang.core.ids import TenantId
from conserve_sglang.tiermap.keys import key_digest, load_keys, new_key, revoke_key

HASH = "sha256:" + "ab" * 32


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_new_key_is_256_random_bits_and_only_its_hash_is_written(file: Path) -> None:
    key, other = new_key(file, "team-a"), new_key(file, "team-a")
    assert key != other
    assert len(key.removeprefix("csk-")) == 43  # 32 bytes in base64
    assert key not in file.read_text()
    assert "sha256:" + hashlib.sha256(key.encode()).hexdigest() in file.read_text()
    (entry,) = load_keys(file)
    assert entry.digests == (key_digest(key.encode()), key_digest(other.encode()))


def test_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode(file: Path) -> None:
    new_key(file, "a")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    new_key(file, "a")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_router_can_still_read_its_file_when_root_has_written_it(file: Path) -> None:
    new_key(file, "a")
    os.chown(file, 12345, 54321)
    new_key(file, "a")
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 54321)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["keys.yaml"]


def test_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    new_key(tmp_path / "real.yaml", "a")
    file.symlink_to("real.yaml")
    new_key(file, "a")
    assert file.is_symlink()
    assert len(load_keys(tmp_path / "real.yaml")[0].digests) == 2


@pytest.mark.parametrize("name", ["a b", "A", "-a", "", "a" * 49])
def test_name_that_no_tenant_may_have_is_refused_in_words(file: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a tenant: use at most 48 small letters"):
        new_key(file, name)
    assert not file.exists()


def test_weight_out_of_range_is_told_of_the_file_itself(file: Path) -> None:
    with pytest.raises(TierMapError, match=f"^{re.escape(str(file))}: tenants"):
        new_key(file, "a", weight=0)


def test_weight_and_rights_are_set_when_given_and_kept_else(file: Path) -> None:
    new_key(file, "a", weight=2.5, may_place=True)
    new_key(file, "a")
    new_key(file, "b")
    first, second = (entry.tenant for entry in load_keys(file))
    assert (first.tenant_id, first.weight, first.may_place) == ("a", 2.5, True)
    assert (second.tenant_id, second.weight, second.may_place) == ("b", 1.0, False)


def test_revoked_key_is_gone_and_its_tenant_stays(file: Path) -> None:
    digest = key_digest(new_key(file, "a").encode())
    kept = key_digest(new_key(file, "b").encode())
    assert revoke_key(file, digest.hex()[:12]) == TenantId("a")
    assert [entry.digests for entry in load_keys(file)] == [(), (kept,)]


@pytest.mark.parametrize(
    ("shown", "message"),
    [("abc", "first 8 or more"), ("*" * 8, "first 8 or more"), ("0" * 64, "no key whose hash")],
)
def test_only_one_known_key_can_be_revoked(file: Path, shown: str, message: str) -> None:
    new_key(file, "a")
    with pytest.raises(ConfigError, match=message):
        revoke_key(file, shown)


def test_ambiguous_beginning_revokes_nothing(file: Path) -> None:
    both = ["sha256:" + "ab" * 31 + end for end in ("00", "11")]
    file.write_text(f"tenants: [{{name: a, keys: {both}}}]")
    with pytest.raises(ConfigError, match="2 keys whose hash begins with abababab"):
        revoke_key(file, "abababab")
    assert len(load_keys(file)[0].digests) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tenants: [{name: a, wieght: 2}]", r"tenants\[0\].wieght: unknown field; did you mean we"),
        ("tenants: [{weight: 2}]", r"tenants\[0\].name: missing"),
        ("tenants: [{name: A B}]", r"tenants\[0\].name"),
        ("tenants: [{name: a, weight: 0}]", r"tenants\[0\].weight"),
        ("tenants: [{name: a, weight: .inf}]", r"tenants\[0\].weight"),
        ("tenants: [{name: a, weight: .nan}]", r"tenants\[0\].weight"),
        ("tenants: [{name: a}, {name: a}]", r"tenants\[1\].name: 'a' is tenants\[0\]'s already"),
        (
            f"tenants: [{{name: a, keys: ['{HASH}']}}, {{name: b, keys: ['{HASH}']}}]",
            r"tenants\[1\].keys\[0\]: the same key as tenants\[0\].keys\[0\]",
        ),
        ("tenants: [{name: a, name: b}]", "the key 'name' stands here twice"),
        ("- a", "the file"),
    ],
)
def test_wrong_file_is_refused_with_the_place(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(TierMapError, match=message) as caught:
        load_keys(file)
    assert str(file) in str(caught.value)


def test_plain_key_in_the_file_is_refused_and_not_repeated(file: Path) -> None:
    file.write_text("tenants: [{name: a, keys: [csk-very-secret]}]")
    with pytest.raises(TierMapError, match=r"tenants\[0\].keys\[0\]") as caught:
        load_keys(file)
    assert "very-secret" not in str(caught.value)


def test_file_others_may_write_is_refused(file: Path) -> None:
    new_key(file, "a")
    file.chmod(0o620)
    with pytest.raises(TierMapError, match="chmod go-w"):
        load_keys(file)


def test_wrong_tenant_name_writes_nothing(file: Path) -> None:
    with pytest.raises(TierMapError, match="name"):
        new_key(file, "No Such Name")
    assert list(file.parent.iterdir()) == []


def test_empty_file_lets_nobody_in(file: Path) -> None:
    file.write_text("")
    assert load_keys(file) == ()
