"""Gradients of filters with missing values: adjoints in the image, derivatives in the kernel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import npconv as nc
from npconv import filters

PAIRS = ((nc.correlate, filters.correlate_vjp), (nc.convolve, filters.convolve_vjp))
CASES = list(itertools.product(("omit", "interpolate"), ("reflect", "wrap", "constant"), (0.0, 2.0, np.nan)))
CASES = [(policy, boundary, cval) for policy, boundary, cval in CASES if boundary == "constant" or cval == 0]


def operands(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image with gaps, a kernel of positive real parts, and what else is missing."""
    rng = np.random.default_rng(seed)
    x, w, mask = rng.standard_normal((7, 8)), rng.random((3, 4)) + 0.2, rng.random((7, 8)) < 0.1
    if kind == "c":
        x, w = x + 1j * rng.standard_normal(x.shape), w + 0.3j * rng.standard_normal(w.shape)
    x[rng.random(x.shape) < 0.2] = np.nan
    return x, w, mask


@pytest.mark.parametrize("kind", ["f", "c"])
@pytest.mark.parametrize(("policy", "boundary", "cval"), CASES)
def test_a_small_step_changes_the_result_by_the_gradient(policy: str, boundary: str, cval: float, kind: str) -> None:
    x, w, mask = operands(kind)
    rng = np.random.default_rng(1)
    for (function, vjp), stride, min_weight in itertools.product(PAIRS, (1, 2), (0.0, 0.5)):
        how = {"boundary": boundary, "cval": cval, "nan_policy": policy, "mask": mask, "min_weight": min_weight}
        how["stride"] = stride
        y, pullback = vjp(x, w, **how)
        np.testing.assert_array_equal(y, function(x, w, **how))
        known = ~np.isnan(y)
        assert known.any()
        dy = rng.standard_normal(y.shape) + (1j * rng.standard_normal(y.shape) if kind == "c" else 0)
        dx, dw = pullback(dy)
        assert not np.isnan(dx).any()
        assert not np.isnan(dw).any()
        assert (dx[mask | np.isnan(x)] == 0).all()
        for direction_x, direction_w in ((1, 0), (0, 1), (1, 1)):
            step_x = rng.standard_normal(x.shape) * direction_x
            step_w = rng.standard_normal(w.shape) * direction_w
            if kind == "c":
                step_x, step_w = step_x * (1 + 2j), step_w * (2 - 1j)
            h = 1e-6
            ahead, behind = (function(x + s * h * step_x, w + s * h * step_w, **how) for s in (1, -1))
            change = np.vdot(dy[known], (ahead - behind)[known]) / (2 * h)
            predicted = np.vdot(dx, step_x) + np.vdot(dw, step_w)
            assert change.real == pytest.approx(predicted.real, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("policy", ["omit", "interpolate"])
def test_the_image_gets_the_adjoint(policy: str) -> None:
    x, w, mask = operands("f", 3)
    how = {"nan_policy": policy, "mask": mask, "boundary": "nearest"}
    y, pullback = filters.correlate_vjp(x, w, **how)
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx, _ = pullback(dy)
    present = ~(mask | np.isnan(x))
    assert not np.isnan(y).any()
    assert np.vdot(y, dy) == pytest.approx(np.vdot(x[present], dx[present]), rel=1e-12)


@pytest.mark.parametrize("policy", ["omit", "interpolate"])
def test_nothing_missing_is_the_plain_gradient(policy: str) -> None:
    x, w, _ = operands("f")
    x = np.nan_to_num(x)
    _, plain = filters.convolve_vjp(x, w)
    _, pullback = filters.convolve_vjp(x, w, nan_policy=policy)
    for got, expected in zip(pullback(x), plain(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_all_missing_passes_nothing_back() -> None:
    for policy in ("omit", "interpolate"):
        y, pullback = filters.correlate_vjp(np.full(5, np.nan), np.ones(3), nan_policy=policy)
        assert np.isnan(y).all()
        for gradient in pullback(np.ones(5)):
            assert (gradient == 0).all()


def test_what_a_vjp_refuses() -> None:
    with pytest.raises(ValueError, match="contains NaN"):
        filters.correlate_vjp(np.array([1.0, np.nan]), np.ones(1), nan_policy="raise")
    with pytest.raises(ValueError, match="sum to zero"):
        filters.correlate_vjp(np.ones(3), np.array([1.0, -1.0]), nan_policy="omit")
    with pytest.raises(ValueError, match="mask needs"):
        filters.convolve_vjp(np.ones(3), np.ones(2), mask=np.zeros(3, bool))
