"""A checksum in a planned file, which tells whether somebody has edited it since."""

import hashlib
import re

_CHECKSUM = re.compile(r"^.*\bchecksum, to tell an edited file: ([0-9a-f]{16})\b.*\n", re.MULTILINE)


def with_checksum(text: str, comment: str = "# {}") -> str:
    """The text of a file with its checksum as a comment in its second line, or where its first is
    no comment, in its last."""
    line = comment.format(f"checksum, to tell an edited file: {_digest(text)}") + "\n"
    if text.startswith("#"):
        first, rest = text.split("\n", 1)
        return f"{first}\n{line}{rest}"
    return text + line


def is_edited(text: str) -> bool:
    """Whether a file that `plan` wrote is not as it wrote it, or cannot tell."""
    found = _CHECKSUM.search(text)
    return found is None or found[1] != _digest(text[: found.start()] + text[found.end() :])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
