import logging

import pytest

from conserve_sglang.plugin.mask import mask_api_keys

LOGGER = logging.getLogger("tests.plugin.mask")


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (  # as 0.5.23 and 0.5.17 say it
            "server_args={'port': 1, 'api_key': 'hush', 'admin_api_key': \"hu'sh\", 'x': 'y'}",
            "server_args={'port': 1, 'api_key': '***', 'admin_api_key': '***', 'x': 'y'}",
        ),
        ("ServerArgs(port=1, api_key='hush', x='y')", "ServerArgs(port=1, api_key='***', x='y')"),
        ("'api_key': None, 'x': 'y'", "'api_key': None, 'x': 'y'"),
        ("nothing of note", "nothing of note"),
    ],
)
def test_api_keys_are_masked_and_the_rest_is_kept(
    said: str, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    LOGGER.addFilter(mask_api_keys)
    LOGGER.error(said)
    assert caplog.messages == [kept]


def test_arguments_of_a_record_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.addFilter(mask_api_keys)
    LOGGER.error("%d of %s", 1, "two")
    assert caplog.messages == ["1 of two"]
