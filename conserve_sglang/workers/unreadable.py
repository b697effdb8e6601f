"""What decoding somebody else's JSON can raise."""

import msgspec

# UTF-8 is looked at where a string is, and nesting by the stack: neither is a DecodeError.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
