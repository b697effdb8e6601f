"""The files that `plan` writes: what may be written over, and how it is told."""

import os
from pathlib import Path

from conserve_sglang.core.errors import PlanError
from conserve_sglang.planning.checksum import is_edited

MAP_MARK, REPORT_MARK = "Chosen by `conserve-sglang plan`", "<title>Plan: "
"""What the files begin with: nothing else that is there already is written over."""


def check_outputs(out: Path | None, report: Path | None, *, is_forced: bool = False) -> None:
    """That files can be written, before the work is done. Raises PlanError where one cannot, is one
    of the inputs, or is there already and was not written by `plan`; and where one was edited
    since, if that is not forced."""
    if out is not None and out == report:
        raise PlanError(f"{out}: is named for both the tier map and the report")
    for path, mark in ((out, MAP_MARK), (report, REPORT_MARK)):
        if path is not None:
            _check_place(path)
            if path.is_file() and path.stat().st_size:
                _check_content(path, mark, is_forced=is_forced)


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise PlanError(f"{path}: cannot be written: it is a directory")
    if not path.exists():
        folder = path.parent
        if not folder.is_dir():
            raise PlanError(f"{path}: cannot be written: there is no directory {folder}")
        if not os.access(folder, os.W_OK):
            raise PlanError(f"{path}: cannot be written: {folder} is not writable")
    elif not os.access(path, os.W_OK):
        raise PlanError(f"{path}: cannot be written: permission denied")


def _check_content(path: Path, mark: str, *, is_forced: bool) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    if mark not in text[:400]:
        raise PlanError(
            f"{path}: is there already, and was not written by `conserve-sglang plan`; choose"
            " another name, or remove it"
        )
    if is_edited(text) and not is_forced:
        raise PlanError(
            f"{path}: was written by `conserve-sglang plan`, and edited since (its checksum is"
            " missing or another); choose another name, or write over it with --force"
        )


def was_there(path: Path | None) -> bool:
    """Whether a file of an earlier plan is at this path, once `check_outputs` has let it pass."""
    return path is not None and path.is_file() and path.stat().st_size > 0


def write(path: Path, text: str) -> None:
    """Write a file. Raises PlanError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PlanError(f"{path}: cannot be written: {error.strerror}") from error
