"""Flags with secret values, told to a child in a file that only its user may read.

A command line can be read by every user of a machine. SGLang also takes its flags from a YAML file,
which it reads once, when it starts.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


class PrivateFlags:
    """The file, as long as it is needed. `argv` are the words that name it; none without flags."""

    def __init__(self, flags: Mapping[str, str]) -> None:
        self.argv: tuple[str, ...] = ()
        self._file: Path | None = None
        if flags:
            handle, name = tempfile.mkstemp(prefix="conserve-", suffix=".yaml")  # mode 0600
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({flag: os.environ[variable] for flag, variable in flags.items()}, file)
            self._file = Path(name)
            self.argv = ("--config", name)

    def forget(self) -> None:
        """Remove the file."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None
