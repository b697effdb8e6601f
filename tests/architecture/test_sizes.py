"""Files and functions stay small, and no module is named for nothing."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    path for folder in ("conserve_sglang", "cli") for path in ROOT.glob(f"{folder}/**/*.py")
)
MOST_LINES_OF_A_FILE = 350
MOST_LINES_OF_A_FUNCTION = 50
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_shipped_code_was_found() -> None:
    assert len(SHIPPED) > 20


def test_files_are_short() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SHIPPED}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FILE}


def test_functions_are_short() -> None:
    assert not {
        f"{name_of(path)}:{name}": lines
        for path in SHIPPED
        for name, lines in functions(path)
        if lines > MOST_LINES_OF_A_FUNCTION
    }


def test_every_module_has_a_name_that_says_something() -> None:
    assert not [name_of(path) for path in SHIPPED if NAMELESS & {path.stem, path.parent.name}]
