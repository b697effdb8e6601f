"""conserve-sglang dashboards: the Grafana dashboard and the alert rules, as files."""

from pathlib import Path
from typing import Annotated

import typer

from .fail import clean_failure


def dashboards(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where to write the files.")
    ] = Path("out/dashboards"),
) -> None:
    """Write the Grafana dashboard (JSON) and the Prometheus alert rules (YAML)."""
    from conserve_sglang.core.errors import ConfigError
    from conserve_sglang.telemetry.assets import write_all

    with clean_failure():
        try:
            written = write_all(out)
        except OSError as error:
            raise ConfigError(f"--out: {out} cannot be written: {error.strerror}") from error
    for path, use in written:
        typer.echo(f"{path}  {use}")
