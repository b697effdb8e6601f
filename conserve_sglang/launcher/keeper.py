"""Holds one process tree and takes it down whatever happens. Run as a script, not imported.

    python -I -S keeper.py LIFELINE_FD GRACE_S[:LAST_WORDS_S] COMMAND...

One keeper stands between the launcher and each server, alone in its session. The tree is killed

* when the server's main process ends, since it leaves schedulers behind when it is killed;
* when the lifeline, a pipe whose other end only the launcher holds, closes: the launcher is gone,
  even by kill -9;
* `GRACE_S` seconds after a SIGTERM that the keeper passed on to the main process, or at a second
  one.

With `LAST_WORDS_S` above 0 what is left of a tree whose main process ended has so long to end by
itself, and a second SIGTERM is passed on as well, so long before the tree is killed.

The keeper is the subreaper of the tree, so that a child which made itself a session of its own is
found as well. If the keeper itself is killed, the kernel kills the main process. The standard
library alone is imported: there is one of these for each server.
"""

import ctypes
import os
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_KILL_TIMEOUT_S = 10.0


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def _spawn(argv: list[str]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else it died before the line above
            os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]}: {error}\n")
        sys.stderr.flush()
    os._exit(127)


def _reap(main_pid: int) -> tuple[bool, int | None]:
    """Collect what has ended: (is any child left, status of the main process if it ended)."""
    status_of_main = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False, status_of_main
        if pid == 0:
            return True, status_of_main
        if pid == main_pid:
            status_of_main = status


def _descendants() -> list[int]:
    """All processes below this one, by the parent named in /proc/PID/stat."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as stat:
                    parent = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _kill_tree(main_pid: int) -> int | None:
    """Kill until nothing is left; the main process's status if it ended only now."""
    status_of_main = None
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while time.monotonic() < deadline:
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        any_left, status = _reap(main_pid)
        status_of_main = status if status is not None else status_of_main
        if not any_left:
            break
        time.sleep(0.01)
    return status_of_main


def _let_end(main_pid: int, last_words_s: float) -> None:
    """The main process ended: give what is left of the tree a moment to end by itself."""
    deadline = time.monotonic() + last_words_s
    while time.monotonic() < deadline and _reap(main_pid)[0]:
        time.sleep(0.01)


def _watch(
    main_pid: int, lifeline: int, wakeup: int, grace_s: float, last_words_s: float
) -> int | None:
    """Wait for a reason to take the tree down; the main process's status if that was it."""
    kill_at: float | None = None
    num_asked = 0
    while True:
        _, status = _reap(main_pid)
        if status is not None:
            _let_end(main_pid, last_words_s)
            return status
        wait_s = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        if wait_s == 0.0:
            return None
        ready, _, _ = select.select([lifeline, wakeup], [], [], wait_s)
        if lifeline in ready:
            return None
        if wakeup in ready and signal.SIGTERM in os.read(wakeup, 64):
            num_asked += 1
            if num_asked > (2 if last_words_s else 1):
                return None
            os.kill(main_pid, signal.SIGTERM)
            kill_at = time.monotonic() + (grace_s if num_asked == 1 else last_words_s)


def main() -> int:
    """Run the command; return its exit code, or 128 + the signal that ended it."""
    lifeline, argv = int(sys.argv[1]), sys.argv[3:]
    grace, _, last_words = sys.argv[2].partition(":")
    os.set_inheritable(lifeline, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wakeup, notify = os.pipe()
    os.set_blocking(notify, False)
    signal.set_wakeup_fd(notify, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    main_pid = _spawn(argv)
    status = _watch(main_pid, lifeline, wakeup, float(grace), float(last_words or 0))
    status_after = _kill_tree(main_pid)
    code = os.waitstatus_to_exitcode(status if status is not None else status_after or 0)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
