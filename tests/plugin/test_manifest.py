from pathlib import Path

import pytest

from conserve_sglang.plugin import manifest
from conserve_sglang.plugin.manifest import Function, Manifest, Status, fingerprint

SOURCE = '''
class A:
    @decorated
    def f(self):
        """Doc."""
        # a remark
        return 1

    if True:
        async def g(self): return 2
'''


def test_comments_blank_lines_and_indentation_are_not_hashed() -> None:
    plain = '@decorated\ndef f(self):\n    """Doc."""\n\n    return 1\n'
    assert fingerprint(SOURCE, "A.f") == fingerprint(plain, "f")


@pytest.mark.parametrize("change", ["@decorated", "return 1", "Doc."])
def test_code_decorators_and_docstrings_are_hashed(change: str) -> None:
    other = SOURCE.replace(change, "@other" if change.startswith("@") else change + "0")
    assert fingerprint(SOURCE, "A.f") != fingerprint(other, "A.f")


def test_what_is_not_there_has_no_fingerprint() -> None:
    assert fingerprint(SOURCE, "A.h") is None
    assert fingerprint(SOURCE, "A.g") is not None


def entry(qualname: str, sha256: str | None) -> Function:
    return Function(
        target=qualname, file="a.py", qualname=qualname, sha256=sha256 or "", role="called", why="x"
    )


def test_a_tree_is_compared_function_by_function(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    known = Manifest(
        sglang="1.0",
        functions=(entry("A.f", fingerprint(SOURCE, "A.f")), entry("A.g", "0"), entry("A.h", "0")),
    )
    found = [finding.status for finding in manifest.compare(known, tmp_path)]
    assert found == [Status.EQUAL, Status.CHANGED, Status.GONE]


def test_a_manifest_reads_back_as_it_was_written() -> None:
    known = Manifest(sglang="1.0", functions=(entry("A.f", "0"),))
    assert manifest.parse_manifest(manifest.render_manifest(known)) == known


@pytest.mark.parametrize(
    ("version", "nearest"),
    [("0.5.24", "0.5.23"), ("0.5.18", "0.5.17"), ("0.5.20", "0.5.23"), ("0.6.0rc1", "0.5.23")],
)
def test_the_nearest_manifest_is_the_base_of_a_draft(version: str, nearest: str) -> None:
    assert manifest.nearest_version(version, ("0.5.17", "0.5.23")) == nearest
