"""The command line: one file per command, each decodes, calls one function and renders."""
