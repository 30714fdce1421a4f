"""The checks of numbers in configurations."""

import math
from types import SimpleNamespace

import pytest

from tigerrec.ranges import at_least_one, below_one, not_negative, positive


@pytest.mark.parametrize(
    ("check", "allowed", "refused", "words"),
    [
        (at_least_one, (1, 7), (0, -1), "at least 1"),
        (positive, (1e-9, 3), (0, -0.1), "positive"),
        (not_negative, (0, 0.5), (-1e-9,), "0 or more"),
        (below_one, (0, 0.99), (1, -0.1), r"in \[0, 1\)"),
    ],
)
def test_the_first_field_out_of_range_is_named(check, allowed, refused, words):
    for value in allowed:
        check(SimpleNamespace(a=value, b=value), "a", "b")
    for value in (*refused, math.nan):
        with pytest.raises(ValueError, match=f"^b must be {words}, got {value}$"):
            check(SimpleNamespace(a=allowed[0], b=value, c=refused[0]), "a", "b", "c")
