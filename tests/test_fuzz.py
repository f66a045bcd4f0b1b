"""A slice of `python -m benchmarks.fuzz`: every parser on some damaged input, the same each time."""

import pytest
from benchmarks.fuzz import CANARY, TARGETS, Canary, fuzz

SLOW_ERRORS = ("recipe",)  # whose nesting takes a second to be refused


@pytest.mark.parametrize("target", TARGETS)
def test_an_answer_or_an_error_that_says_what_is_wrong(target: str) -> None:
    examples = 12 if target in SLOW_ERRORS else 40
    assert 0 < fuzz(target, examples) <= 10 * examples


def test_the_canary_sings_if_it_is_unpickled() -> None:
    call, arguments = Canary().__reduce__()
    call(*arguments)
    assert CANARY.exists()
    CANARY.unlink()
