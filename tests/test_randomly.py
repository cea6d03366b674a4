"""What the stress test compares with is the definition."""

from __future__ import annotations

import numpy as np
import pytest
import randomly
import vectorised
from strategies import DTYPES, identical


@pytest.mark.parametrize("seed", range(26))
def test_the_vectorised_definition_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    problem, dtype = randomly.random_problem(rng), DTYPES[seed % len(DTYPES)]
    fast = problem.but(definition=vectorised)
    x, w, bias, dy = problem.x(dtype), problem.w(dtype), problem.bias(dtype), problem.dy(dtype)
    identical(fast.expected(x, w, bias), problem.expected(x, w, bias))
    identical(fast.expected_input_grad(dy, w), problem.expected_input_grad(dy, w))
    identical(fast.expected_weight_grad(x, dy), problem.expected_weight_grad(x, dy))


def test_a_wrong_number_is_found(monkeypatch):
    """A check that cannot fail would find nothing in a hundred thousand."""
    original = randomly.Problem.input_grad

    def wrong(problem, dy, w, *, algorithm, **how):
        dx = original(problem, dy, w, algorithm=algorithm, **how)
        return dx + dx.dtype.type(1) if algorithm == "im2col" else dx

    monkeypatch.setattr(randomly.Problem, "input_grad", wrong)
    with pytest.raises(AssertionError) as found:
        randomly.check(0)
    assert "seed 0: input_grad of Problem(" in "".join(found.value.__notes__)


def test_a_wrong_filter_is_found(monkeypatch):
    original = randomly.nc.correlate

    def wrong(x, w, *, boundary, **how):
        return original(x, w, boundary={"mirror": "reflect"}.get(boundary, boundary), **how)

    monkeypatch.setattr(randomly.nc, "correlate", wrong)
    with pytest.raises(AssertionError) as found:
        list(map(randomly.check_filter, range(50)))
    assert "mirror" in "".join(found.value.__notes__)
