"""How many tokens a text is, by a model's own tokenizer."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from conserve_sglang.core.errors import TraceError

CountTokens = Callable[[str], int]
MOST_TEXTS_KEPT = 4096


def tokenizer_file(path: Path) -> Path:
    """The `tokenizer.json` that is meant; TraceError if there is none."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise TraceError(f"{file}: no such tokenizer file")
    return file


def load_counter(path: Path) -> CountTokens:
    """A counter from a `tokenizer.json`, or from the folder of a model that has one.

    Raises TraceError when the file cannot be used or the library `tokenizers` is missing.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TraceError(
            "counting tokens needs the library tokenizers: pip install 'conserve-sglang[traces]'"
        ) from error
    file = tokenizer_file(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise TraceError(f"{file}: is no tokenizer.json: {error}") from error

    @lru_cache(maxsize=MOST_TEXTS_KEPT)  # a message stands in every later prompt again
    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
