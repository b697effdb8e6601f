"""The state file: what it keeps, what it refuses, and what it does when it is broken."""

import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.state import SavedConversation, SavedResponse, SqliteStore
from tests.state.builders import a_saved


def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.sqlite"
    store = SqliteStore(path)
    secret = store.secret()
    first = a_saved("a", worker=None, counted_bytes=7, counted_tokens=2)
    second = a_saved("b", filed_at=b"\1" * 16, filed_block=b"block", filed_bytes=2048)
    store.write([first, second, a_saved("c")], [])
    store.write([second._replace(num_turns=9)], ["c", "never-there"])
    store.close()
    again = SqliteStore(path)
    assert sorted(again.load()) == [first, second._replace(num_turns=9)]
    assert again.secret() == secret
    assert len(secret) == 32
    again.close()


def test_each_conversation_has_one_row_whoever_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for number in range(3):
        store = SqliteStore(path)
        if number == 1:
            store.load()  # else its first write reads what is there
        store.write([a_saved("a", num_turns=number), a_saved(f"b{number}")], ["gone"])
        store.write([a_saved("gone")], [f"b{number - 1}"])
        store.close()
    store = SqliteStore(path)
    assert sorted(store.load()) == [a_saved("a", num_turns=2), a_saved("b2"), a_saved("gone")]
    store.close()


def test_what_a_failed_write_was_to_forget_can_be_written_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s")
    store.write([a_saved("a")], [])
    bad = a_saved("b")._replace(tenant=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.write([bad], ["a"])
    store.write([a_saved("a", num_turns=7), a_saved("c")], [])
    assert sorted(store.load()) == [a_saved("a", num_turns=7), a_saved("c")]
    store.close()


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.sqlite"
    store = SqliteStore(path)
    store.write([a_saved("a")], [])
    modes = {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close()


def test_names_of_any_bytes_are_kept(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s")
    odd = a_saved("a", name=b"\xff\x00'; DROP TABLE conversations; --")
    store.write([odd], [])
    assert store.load() == [odd]
    store.close()


def test_a_second_router_is_refused_and_may_have_it_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = SqliteStore(path)
    with pytest.raises(ConfigError, match="another router has this state"):
        SqliteStore(path)
    store.close()
    SqliteStore(path).close()


def test_a_batch_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s")
    bad = a_saved("b")._replace(tenant=None)  # type: ignore[arg-type]
    with pytest.raises(sqlite3.IntegrityError):
        store.write([a_saved("a"), bad], [])
    assert store.load() == []
    store.write([a_saved("a")], [])
    assert len(store.load()) == 1
    store.close()


@pytest.mark.parametrize("content", [b"notes of mine\n" * 100, b"x"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"not a state file .* router\.state\.path"):
        SqliteStore(path)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE conversations (x)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not a state file"):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_state_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    SqliteStore(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 6")
    db.close()
    with pytest.raises(ConfigError, match="form 6, and this version reads form 5"):
        SqliteStore(path)


@pytest.mark.parametrize("damage", ["zeroed", "torn"])
def test_a_corrupt_file_is_moved_aside_and_a_new_one_begun(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    store = SqliteStore(path)
    secret = store.secret()
    store.write([a_saved(f"c{number}") for number in range(2000)], [])
    store.close()
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "zeroed":
        path.write_bytes(bytes(len(content)))
    else:
        path.write_bytes(content[:4096] + os.urandom(middle) + content[middle + 4096 :])
    with caplog.at_level(logging.ERROR):
        store = SqliteStore(path)
    assert store.load() == []
    assert store.secret() != secret
    store.write([a_saved("a")], [])
    store.close()
    (aside,) = tmp_path.glob("s.corrupt-*")
    assert aside.stat().st_size == len(content)
    assert "is corrupt" in caplog.text
    assert aside.name in caplog.text


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be used as state: .* `state: null`"):
        SqliteStore(tmp_path / "file" / "s")


WRITER = """
import sys
from pathlib import Path
from conserve_sglang.state import SavedConversation, SqliteStore
store = SqliteStore(Path(sys.argv[1]))
for n in range(10**6):
    store.write([SavedConversation(f"c{n}", "t", b"n", None, None, n, n, 1, 1, 1.0)], [])
    print(n, flush=True)
"""


def test_killed_in_the_middle_of_writing_every_commit_is_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(200)]
    writer.send_signal(signal.SIGKILL)
    said += [int(line) for line in writer.stdout.read().splitlines() if line]
    writer.wait()
    writer.stdout.close()
    store = SqliteStore(path)
    stored = {each.key for each in store.load()}
    assert {f"c{n}" for n in said[:-1]} <= stored
    assert all(isinstance(each, SavedConversation) for each in store.load())
    store.close()


def test_responses_are_kept_in_order_until_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = SqliteStore(path)
    first = SavedResponse("t", "r1", None, b'{"a":1}', b'{"b":2}')
    second = SavedResponse("t", "r2", "r1", b"\xff")
    theirs = SavedResponse("u", "r1", None, b"x")
    store.write([], [], [second._replace(response=b"whole"), first, theirs], [])
    store.write([], [], [second], [("u", "r1"), ("u", "never-there")])
    store.close()
    again = SqliteStore(path)
    assert again.load_responses() == [second, first]
    again.forget_responses()
    assert again.load_responses() == []
    again.close()


COLUMNS = """
  key TEXT PRIMARY KEY, tenant TEXT NOT NULL, name BLOB NOT NULL, worker TEXT, incarnation TEXT,
  resident_tokens INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, num_turns INTEGER NOT NULL,
  num_kv_transfers INTEGER NOT NULL, last_active_at_wall REAL NOT NULL, filed_at BLOB,
  filed_block BLOB, filed_bytes INTEGER NOT NULL, counted_bytes INTEGER, counted_tokens INTEGER
"""
BY_KEY = f"""
CREATE TEMP TABLE now AS SELECT * FROM conversations ORDER BY number;
ALTER TABLE now DROP COLUMN number;
DROP TABLE conversations;
CREATE TABLE conversations ({COLUMNS});
INSERT INTO conversations SELECT * FROM now;
"""
KEYS_IN_ORDER = BY_KEY.replace(");", ") WITHOUT ROWID;", 1)
NO_OBJECTS = "ALTER TABLE responses DROP COLUMN response;"
FORMER = {
    1: f"DROP TABLE responses; {KEYS_IN_ORDER}",
    2: f"{NO_OBJECTS} {KEYS_IN_ORDER}",
    3: f"{NO_OBJECTS} {BY_KEY}",
    4: NO_OBJECTS,
}


@pytest.mark.parametrize("form", FORMER)
def test_state_of_a_former_form_is_taken_over(tmp_path: Path, form: int) -> None:
    path = tmp_path / "s"
    store = SqliteStore(path)
    secret = store.secret()
    response = SavedResponse("t", "r", None, b"{}")
    saved = [a_saved("b"), a_saved("a")]
    store.write(saved, [], [response])
    store.close()
    db = sqlite3.connect(path)
    db.executescript(f"{FORMER[form]} PRAGMA user_version = {form};")
    db.close()
    for number in range(2):
        store = SqliteStore(path)
        assert store.secret() == secret
        assert sorted(store.load()) == sorted(saved)
        assert store.load_responses() == ([] if form == 1 else [response])
        saved = [a_saved("a")._replace(num_turns=9 + number), a_saved("b")]
        store.write(saved[:1], [])
        store.close()
