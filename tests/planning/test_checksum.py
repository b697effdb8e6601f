"""A planned file that was edited is told from one that was not."""

import pytest
import yaml

from conserve_sglang.planning.checksum import is_edited, with_checksum


@pytest.mark.parametrize(
    ("comment", "text"),
    [("# {}", "# head\nbody: 1\n"), ("<!-- {} -->", "<html>\nhead\n</html>\n")],
)
def test_a_checksum_tells_any_edit(comment: str, text: str) -> None:
    signed = with_checksum(text, comment)
    assert not is_edited(signed)
    assert is_edited(text), "without a checksum nobody knows"
    assert is_edited(signed + " ")
    assert is_edited(signed.replace("head", "hood"))


def test_a_map_with_a_checksum_is_the_same_map() -> None:
    signed = with_checksum("# head\nbody: 1\n")
    assert signed.splitlines()[0] == "# head"
    assert yaml.safe_load(signed) == {"body": 1}
