"""A slice of `python -m benchmarks.sizes`: group attention at sizes and settings drawn at random."""

import pytest
from benchmarks.sizes import TOLERANCE, Draw, differences, draws


@pytest.mark.parametrize(("number", "draw"), enumerate(draws(30, seed=1)))
def test_attention_equals_its_padded_definition(number: int, draw: Draw) -> None:
    output, gradient = differences(draw, number)
    assert (output <= TOLERANCE[draw.dtype][0], gradient <= TOLERANCE[draw.dtype][1]) == (True, True)
