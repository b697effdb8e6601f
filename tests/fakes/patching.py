"""Tests that put something of their own in the place of a part of the product.

The classes of compiled modules are fixed, so there such a test cannot run; see
`tests/scripts/test_compiled.py`. What it holds is the same source's behaviour.
"""

import pytest

from conserve_sglang.router.tuning import is_compiled

WHY = "replaces a part of a class that is compiled"
replaces_a_part = pytest.mark.skipif(is_compiled(), reason=WHY)
