"""A worker's phase log read while it grows, is renamed, and begins anew."""

from pathlib import Path

import pytest

from conserve_sglang.agent.tail import PhaseTail
from conserve_sglang.core.phase_log import (
    Batch,
    Launched,
    Opened,
    encode_extend,
    encode_launched,
    encode_opened,
)


def append(path: Path, *lines: bytes) -> None:
    with path.open("ab") as file:
        file.write(b"".join(lines))


def test_lines_are_told_once_each_and_half_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "d.phases"
    tail = PhaseTail(path)
    assert list(tail.entries()) == []
    line = encode_extend(1.0, 2.0, [])
    append(path, encode_opened(7, 0.5, 1), encode_launched(1.0), line[:9])
    assert list(tail.entries()) == [Opened(7, 0.5, 1), Launched(1.0)]
    append(path, line[9:])
    assert list(tail.entries()) == [Batch(1.0, 2.0, 1, ())]
    assert list(tail.entries()) == []
    tail.close()


def test_end_of_a_renamed_file_is_read_before_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "d.phases"
    tail = PhaseTail(path)
    append(path, encode_opened(7, 0.5, 1))
    assert len(list(tail.entries())) == 1
    append(path, encode_launched(1.0))
    path.rename(tmp_path / "d.phases.1")
    assert list(tail.entries()) == [Launched(1.0)]  # and there is no new one yet
    append(path, encode_opened(7, 2.0, 2), encode_launched(3.0))
    assert list(tail.entries()) == [Opened(7, 2.0, 2), Launched(3.0)]
    assert tail.num_lost_files == 0
    tail.close()


def test_files_that_came_and_went_unread_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.phases"
    tail = PhaseTail(path)
    append(path, encode_opened(7, 0.5, 1))
    list(tail.entries())
    path.unlink()
    append(path, encode_opened(7, 9.0, 4))
    list(tail.entries())
    assert tail.num_lost_files == 2
    tail.close()


def test_another_process_begins_counting_anew(tmp_path: Path) -> None:
    path = tmp_path / "d.phases"
    tail = PhaseTail(path)
    append(path, encode_opened(7, 0.5, 5))
    list(tail.entries())
    path.unlink()
    append(path, encode_opened(8, 9.0, 1))
    assert list(tail.entries()) == [Opened(8, 9.0, 1)]
    assert tail.num_lost_files == 0
    tail.close()


def test_damaged_line_is_passed_over_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "d.phases"
    append(path, b"{broken\n", b"[]\n", encode_launched(1.0))
    tail = PhaseTail(path)
    assert list(tail.entries()) == [Launched(1.0)]
    assert tail.num_damaged_lines == 2
    assert len(caplog.records) == 1
    tail.close()
