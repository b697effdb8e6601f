"""Files of conversations: one reader per format. A line that cannot be used is named, not lost."""

from conserve_sglang.traces.formats import FORMATS, STDIN, format_of, read_trace
from conserve_sglang.traces.own import write_conversation
from conserve_sglang.traces.reading import BadLine, Trace
from conserve_sglang.traces.source import GENERATORS, Drawn, Source, draw

__all__ = [
    "FORMATS",
    "GENERATORS",
    "STDIN",
    "BadLine",
    "Drawn",
    "Source",
    "Trace",
    "draw",
    "format_of",
    "read_trace",
    "write_conversation",
]
