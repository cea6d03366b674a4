"""Hypothesis profiles, and the fixtures that sweep backends and algorithms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from strategies import BACKENDS, ON_GPU

import npconv as nc
from npconv.algorithms import ALGORITHMS
from npconv.planning import measurements

# "quick" is for every run and always draws the same examples; "long" is for a night: --hypothesis-profile=long.
settings.register_profile("quick", max_examples=15, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=1500, deadline=None, print_blob=True)
settings.load_profile("quick")


@pytest.fixture(autouse=True, scope="session")
def without_measurements_of_this_machine() -> Iterator[None]:
    """Plans are what they are everywhere, whatever the user's cache folder knows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurements, "cache_dir", lambda: None)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what goes through all backends by itself, where one of them is a GPU; fixtures mark their own parameters."""
    for item in items:
        test = getattr(item, "function", None)
        # What `@given` wraps.
        test = getattr(getattr(test, "hypothesis", None), "inner_test", test)
        if "BACKENDS" in getattr(getattr(test, "__code__", None), "co_names", ()):
            for mark in ON_GPU:
                item.add_marker(mark)


@pytest.fixture(
    params=[pytest.param(name, marks=ON_GPU if name == "cupy" else ()) for name in BACKENDS], scope="session"
)
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend that can run here. Session scope, so that `@given` may be used with it."""
    return request.param


@pytest.fixture(params=("auto", *ALGORITHMS), scope="session")
def algorithm(request: pytest.FixtureRequest) -> str:
    """Every row of the table of algorithms, and the planner's choice."""
    return request.param


@pytest.fixture
def on_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is not told otherwise, such as a layer, computes on the test's `backend`, where it has one."""
    if "backend" in request.fixturenames:
        with nc.use_backend(request.getfixturevalue("backend")):
            yield
    else:
        yield


@pytest.fixture
def made_anew() -> Iterator[None]:
    """No loop is used that was made ready under other limits than a test's, and none of this test's stays."""
    from npconv.kernels.cpu import drivers

    made = drivers.tile_runner, drivers.panel_runner, drivers.runner_laying_out
    for runner in made:
        runner.cache_clear()
    yield
    for runner in made:
        runner.cache_clear()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Restore the number of threads afterwards; the list records the helpers that parallel calls asked for."""
    from npconv.kernels.cpu import threads as pool

    asked: list[int] = []
    ask = pool._ask

    def recording(shares: pool._Shares, count: int) -> int:
        asked.append(count)
        return ask(shares, count)

    monkeypatch.setattr(pool, "_ask", recording)
    yield asked
    nc.set_num_threads(None)
