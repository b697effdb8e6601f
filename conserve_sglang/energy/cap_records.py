"""What has to be put back: a record on disk for each GPU, written before the first write to it.

A record says what was found and what was set since. It is there as long as a GPU is not as it was
found, so whoever comes after a crash can put it back (`conserve-sglang doctor --restore`). Beside
it lies a lock, held by the process that has the GPU in hand. The folder is /run/conserve-sglang,
which goes with a restart of the machine, as the settings do; CONSERVE_CAPS_DIR names another.
Containers that share GPUs have to share it: a lock in one's own /run keeps nobody out.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from conserve_sglang.core.errors import CapsError

FOLDER_VARIABLE = "CONSERVE_CAPS_DIR"
DEFAULT_FOLDER = "/run/conserve-sglang"
VERSION = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class CapRecord:
    """A GPU as it was found, and what we may have set on it.

    `found_cap_w` None: it has no power limit. `ours_w` are the limits that may be in force by our
    hand: during a write the old and the new one. `has_clock`: its clocks may be locked by us.
    """

    uuid: str
    index: int
    name: str
    boot_id: str
    found_cap_w: float | None
    was_locked: bool
    pid: int
    at_s: float
    ours_w: tuple[float, ...] = ()
    has_clock: bool = False
    version: int = VERSION


def boot_id() -> str:
    """Tells one start of the machine from another; empty where the kernel does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def caps_folder() -> Path:
    """Where records and locks are."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)


class CapRecords:
    """The records, locks and the log of writes in one folder, made on the first write."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else caps_folder()
        self._locks: dict[str, int] = {}

    def lock(self, uuid: str) -> None:
        """Have a GPU to oneself. Raises `CapsError` naming who has it."""
        path = self._path(uuid, "lock")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CapsError(
                f"{path}: cannot be written: {error.strerror}; run as root, or name another folder"
                f" in {FOLDER_VARIABLE}"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 64, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise CapsError(
                f"{uuid} is in the hands of process {owner}, which sets its power limit; stop that"
                " first"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._locks[uuid] = handle

    def unlock_all(self) -> None:
        """Let others have the GPUs."""
        for handle in self._locks.values():
            os.close(handle)
        self._locks.clear()

    def is_held(self, uuid: str) -> bool:
        """Whether some process has a GPU in hand now."""
        try:
            handle = os.open(self._path(uuid, "lock"), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def write(self, record: CapRecord) -> None:
        """Put a record on the disk, in one piece, before this returns."""
        path = self._path(record.uuid, "json")
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                json.dump(asdict(record), file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
            self._sync_folder()
        except OSError as error:
            raise CapsError(f"{path}: cannot be written: {error.strerror}") from error

    def remove(self, uuid: str) -> None:
        """A GPU is as it was found."""
        self._path(uuid, "json").unlink(missing_ok=True)
        self._sync_folder()

    def has(self, uuid: str) -> bool:
        """Whether a GPU has a record."""
        return self._path(uuid, "json").exists()

    def read_all(self) -> Iterator[CapRecord]:
        """Every record left. Raises `CapsError` for one, or a folder, that cannot be read."""
        for path in self._record_files():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                if values["version"] != VERSION:
                    raise ValueError(f"version {values['version']} is not known")
                yield CapRecord(**{**values, "ours_w": tuple(values["ours_w"])})
            except FileNotFoundError:
                continue  # put back meanwhile
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise CapsError(
                    f"{path}: cannot be read: {error}; put the GPU back by hand (nvidia-smi -pl,"
                    " -rgc), then remove it"
                ) from error

    def _record_files(self) -> list[Path]:
        """Named by a listing, since a glob passes over a folder that may not be read."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CapsError(
                f"{self.folder}: cannot be read ({error.strerror}), so whether a GPU is to be put"
                " back is not known. Run this as the user who set the caps, or as root."
            ) from error
        return sorted(self.folder / name for name in names if fnmatch(name, "gpu-*.json"))

    def note(self, uuid: str, **what: Any) -> None:
        """Add a line to the log of writes, `writes.jsonl`; a full disk does not stop a restore."""
        line = json.dumps({"at_s": round(time.time(), 3), "pid": os.getpid(), "gpu": uuid, **what})
        with suppress(OSError), (self.folder / "writes.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _path(self, uuid: str, kind: str) -> Path:
        return self.folder / f"gpu-{uuid}.{kind}"

    def _sync_folder(self) -> None:
        with suppress(OSError):
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
