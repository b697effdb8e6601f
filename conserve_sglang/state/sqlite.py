"""Conversations in an SQLite file in WAL mode.

A commit reaches the operating system, not the disk: killing the router loses no commit, while a
power cut may lose the last ones and never breaks the file (`synchronous=NORMAL`: the log is synced
when it is folded into the file). One process has a file at a time; a lock file beside it holds
that. The file is its owner's alone to read: it has the clients' names of conversations, the
secret that their keys are derived with, and, where responses are kept, what was said.
"""

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from conserve_sglang.core.errors import ConfigError
from conserve_sglang.state.record import SavedConversation, SavedResponse

logger = logging.getLogger(__name__)

APPLICATION_ID = 0x434E5356  # "CNSV"
SCHEMA_VERSION = 5
SECRET_BYTES = 32
_MAGIC = b"SQLite format 3\0"
_COLUMNS = ", ".join(SavedConversation._fields)
_PLACES = ", ".join("?" * len(SavedConversation._fields))
_WRITE = f"INSERT OR REPLACE INTO conversations (number, {_COLUMNS}) VALUES (?, {_PLACES})"
_WRITE_RESPONSE = "INSERT INTO responses (tenant, id, previous, messages, response)"
_WRITE_RESPONSE += " VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, id) DO UPDATE SET"
_WRITE_RESPONSE += " previous = excluded.previous, messages = excluded.messages,"
_WRITE_RESPONSE += " response = excluded.response"
_FORGET_RESPONSE = "DELETE FROM responses WHERE tenant = ? AND id = ?"
_RESPONSES = """
CREATE TABLE responses (
  number INTEGER PRIMARY KEY,
  tenant TEXT NOT NULL,
  id TEXT NOT NULL,
  previous TEXT,
  messages BLOB NOT NULL,
  response BLOB NOT NULL DEFAULT x'',
  UNIQUE (tenant, id)
);
"""
# Rows have the numbers that they are written by, in the order they came in. An index of the keys,
# which are random, would have nearly as many pages written as rows: what has which number is known.
_CONVERSATIONS = """
CREATE TABLE conversations (
  number INTEGER PRIMARY KEY,
  key TEXT NOT NULL,
  tenant TEXT NOT NULL,
  name BLOB NOT NULL,
  worker TEXT,
  incarnation TEXT,
  resident_tokens INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  num_turns INTEGER NOT NULL,
  num_kv_transfers INTEGER NOT NULL,
  last_active_at_wall REAL NOT NULL,
  filed_at BLOB,
  filed_block BLOB,
  filed_bytes INTEGER NOT NULL,
  counted_bytes INTEGER,
  counted_tokens INTEGER
);
"""
_SCHEMA = f"""
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
{_CONVERSATIONS}
{_RESPONSES}
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""
_CONVERSATIONS_ANEW = f"""
ALTER TABLE conversations RENAME TO former;
{_CONVERSATIONS}
INSERT INTO conversations ({_COLUMNS}) SELECT {_COLUMNS} FROM former;
DROP TABLE former;
"""
_OBJECTS_TOO = "ALTER TABLE responses ADD COLUMN response BLOB NOT NULL DEFAULT x'';"
_FROM_FORM = {
    1: f"{_RESPONSES} {_CONVERSATIONS_ANEW}",
    2: f"{_OBJECTS_TOO} {_CONVERSATIONS_ANEW}",
    3: f"{_OBJECTS_TOO} {_CONVERSATIONS_ANEW}",
    4: _OBJECTS_TOO,
}


class SqliteStore:
    """A `StateStore` over one file; made by the loop's thread, then used by one thread at a time.

    Opening raises ConfigError for a file that is not ours, that a newer version wrote, or that
    another router has. A file that is ours and broken is moved aside, and a new one begun.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _locked(path)
        try:
            _refuse_foreign(path)
            try:
                self._db = _opened(path)
            except sqlite3.OperationalError as error:
                raise ConfigError(f"{path}: cannot be used as state: {error}") from error
            except sqlite3.DatabaseError as error:
                _move_aside(path, error)
                self._db = _opened(path)
        except BaseException:
            os.close(self._lock)
            raise
        self._numbers: dict[str, int] = {}  # of the rows, by their keys
        self._last_number = 0
        self._is_read = False

    def secret(self) -> bytes:
        """The router's secret; made when it is asked for first."""
        fresh = os.urandom(SECRET_BYTES)
        self._db.execute("INSERT OR IGNORE INTO facts VALUES ('secret', ?)", (fresh,))
        (stored,) = self._db.execute("SELECT value FROM facts WHERE name = 'secret'").fetchone()
        return bytes(stored)

    def load(self) -> list[SavedConversation]:
        """All stored conversations."""
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM conversations ORDER BY number")
        saved = list(map(SavedConversation._make, rows))
        rows = self._db.execute("SELECT number FROM conversations ORDER BY number")
        # By the strings that are returned, which the conversations live on with.
        self._numbers = {each.key: number for each, (number,) in zip(saved, rows, strict=True)}
        self._last_number = max(self._numbers.values(), default=0)
        self._is_read = True
        return saved

    def load_responses(self) -> list[SavedResponse]:
        """All stored responses, in the order they were stored in."""
        columns = "tenant, id, previous, messages, response"
        rows = self._db.execute(f"SELECT {columns} FROM responses ORDER BY number")
        return list(map(SavedResponse._make, rows))

    def forget_responses(self) -> None:
        """Store none of them any more."""
        self._db.execute("DELETE FROM responses")

    def write(
        self,
        changed: Sequence[SavedConversation],
        gone: Sequence[str],
        responses: Sequence[SavedResponse] = (),
        forgotten: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Store some conversations and forget others, and responses, all or nothing."""
        if not self._is_read:
            self.load()
        db, numbers = self._db, self._numbers
        left = [(numbers[key],) for key in gone if key in numbers]
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(_WRITE, ((self._number(each.key), *each) for each in changed))
            db.executemany("DELETE FROM conversations WHERE number = ?", left)
            db.executemany(_WRITE_RESPONSE, responses)
            db.executemany(_FORGET_RESPONSE, forgotten)
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        for key in gone:
            numbers.pop(key, None)

    def _number(self, key: str) -> int:
        """The number of a conversation's row; the next one if there is no row yet."""
        number = self._numbers.get(key)
        if number is None:
            self._last_number = number = self._numbers[key] = self._last_number + 1
        return number

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        self._db.close()
        os.close(self._lock)


def _locked(path: Path) -> int:
    """A descriptor that holds the file's lock until it is closed."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be used as state: {error.strerror}. Name another file in"
            " router.state.path, or write `state: null` to keep nothing."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(
            f"{path}: another router has this state. Stop it, or name another file in"
            " router.state.path."
        ) from error
    return lock


def _refuse_foreign(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except FileNotFoundError:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        return
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as state: {error.strerror}") from error
    if start.strip(b"\0") and start != _MAGIC:
        raise ConfigError(_not_ours(path))


def _not_ours(path: Path) -> str:
    return (
        f"{path}: is not a state file of this router, and is left alone. Name another file in"
        " router.state.path."
    )


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (num_tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or num_tables):
        raise ConfigError(_not_ours(path))
    if application == APPLICATION_ID and version not in (*_FROM_FORM, SCHEMA_VERSION):
        raise ConfigError(
            f"{path}: has state in form {version}, and this version reads form {SCHEMA_VERSION}."
            " Start the version that wrote it, or name another file in router.state.path."
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    if application == 0:
        db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
    elif version in _FROM_FORM:
        done = f"PRAGMA user_version = {SCHEMA_VERSION};"
        db.executescript(f"BEGIN; {_FROM_FORM[version]} {done} COMMIT;")
    with closing(db.execute("PRAGMA quick_check(1)")) as rows:
        (verdict,) = rows.fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)


def _move_aside(path: Path, error: sqlite3.DatabaseError) -> None:
    aside = f"{path}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}"
    for ending in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(f"{path}{ending}", f"{aside}{ending}")
    logger.error(
        "the state in %s is corrupt (%s): moved to %s; starting with none, conversations begin"
        " again with their next turn",
        path,
        error,
        aside,
    )
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
