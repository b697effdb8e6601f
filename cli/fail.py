"""Turns this package's errors into a message and an exit code, in one place.

0 done, 1 the system failed, 2 the input was wrong, 3 power caps or clocks cannot be set.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from conserve_sglang.core.errors import CapsError, ConfigError, ConserveError


@contextmanager
def clean_failure() -> Iterator[None]:
    """Show an error of ours without a traceback; let any other through."""
    try:
        yield
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    except CapsError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(3) from error
    except ConserveError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
