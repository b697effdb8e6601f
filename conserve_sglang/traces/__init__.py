"""Files of conversations: one reader per format. A line that cannot be used is named, not lost."""

from conserve_sglang.traces.formats import FORMATS, format_of, read_trace
from conserve_sglang.traces.own import write_conversation
from conserve_sglang.traces.reading import BadLine, Trace

__all__ = ["FORMATS", "BadLine", "Trace", "format_of", "read_trace", "write_conversation"]
