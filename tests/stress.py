"""Everything at once, for as long as one likes: ``python -m tests.stress --minutes 5``.

Every scene gets an equal share of the time. Where one finds something it says which and with which seed, and the exit
status is 1. docs/reliability.md says what each of them is for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import numpy as np  # noqa: E402
import randomly  # noqa: E402

import npconv as nc  # noqa: E402

CALLERS = 16


def compared(check: Callable[[int], int], what: str) -> Callable[[float, int], str]:
    """Random problems against their definition, one after the other."""

    def scene(until: float, seed: int) -> str:
        count = results = 0
        while count == 0 or time.monotonic() < until:
            results += check(seed + count)
            count += 1
        return f"{count} {what}, {results} results, no difference; seeds {seed} to {seed + count - 1}"

    return scene


def many_threads(until: float, seed: int) -> str:
    """16 Python threads, each with operations of its own choice, all of which use threads themselves."""
    jobs = _mixed_jobs(seed)
    expected = [job() for job in jobs]

    def caller(number: int) -> int:
        rng, count = np.random.default_rng((seed, number)), 0
        while count == 0 or time.monotonic() < until:
            n = int(rng.integers(len(jobs)))
            for found, right in zip(jobs[n](), expected[n], strict=True):
                np.testing.assert_array_equal(found, right)
            count += 1
        return count

    with randomly.every_loop_in_threads(), ThreadPoolExecutor(CALLERS) as pool:
        return f"{sum(pool.map(caller, range(CALLERS)))} calls from {CALLERS} threads, no bit different"


def no_leak(until: float, seed: int) -> str:
    """The process does not grow, however often it calls."""
    jobs = _mixed_jobs(seed)
    count, rounds = 0, 0
    while rounds < 10 or time.monotonic() < until:
        for job in jobs:
            job()
        count, rounds = count + len(jobs), rounds + 1
        if rounds == 5:  # by then caches and the allocator's pools are filled
            first = resident()
    grown = resident() - first
    assert grown < 16, f"{grown:.1f} MB more after {count} calls"
    return f"{count} calls, {grown:+.1f} MB"


def resident() -> float:
    """Resident memory of this process in MB."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def _mixed_jobs(seed: int) -> list[Callable[[], list[np.ndarray]]]:
    rng = np.random.default_rng(seed)
    jobs: list[Callable[[], list[np.ndarray]]] = []
    for dtype in ("f4", "f8", "i4", "c8"):
        x, w = (rng.integers(-3, 4, shape).astype(dtype) for shape in ((2, 6, 23, 21), (8, 6, 3, 3)))
        t = rng.integers(-3, 4, (6, 4, 3, 3)).astype(dtype)
        jobs += [
            *(lambda x=x, w=w, a=a: [nc.conv(x, w, padding=1, algorithm=a)] for a in ("direct", "im2col", "auto")),
            lambda x=x, w=w: list(nc.conv_vjp(x, w, padding=1, stride=2)[1](nc.conv(x, w, padding=1, stride=2))[:2]),
            lambda x=x, t=t: [nc.conv_transpose(x, t, stride=2, padding=1)],
            lambda x=x: [nc.max_pool(x, 3, 2), nc.avg_pool(x.real.astype("f4"), 2), nc.unfold(x, 3)],
            lambda x=x, w=w: [nc.correlate(x, w[0, 0], axes=(2, 3), boundary="mirror")],
        ]
    x, gaps, w = rng.standard_normal((2, 16, 20, 21)).astype("f4"), rng.random((30, 40)), rng.random((5, 5))
    gaps[gaps < 0.1] = np.nan
    deep, taps, wide = x[:, :, None], rng.random((4, 16, 1, 3, 3)).astype("f4"), rng.random((16, 1, 3, 3)).astype("f4")
    jobs += [
        lambda: [nc.batch_norm_vjp(x, activation="relu")[0]],
        lambda: [nc.conv2d(x, wide, groups=16, padding=1), nc.conv3d(deep, taps, padding=(0, 1, 1))],
        lambda: [nc.correlate(gaps, w, nan_policy=policy) for policy in ("omit", "interpolate")],
        lambda: [nc.convolve(x, nc.filters.gaussian(1.5), axes=(2, 3)), nc.correlate(gaps, w, method="fft")],
    ]
    return jobs


def again(names: str, words: str, *options: str) -> Callable[[float, int], str]:
    """A scene that the tests have already, once more."""

    def scene(until: float, seed: int) -> str:
        files = [str(HERE / f"test_{name}.py") for name in names.split()]
        command = [sys.executable, "-m", "pytest", "-q", "-x", *files, *(("-k", words) if words else ()), *options]
        limit = max(300.0, 2 * (until - time.monotonic()))
        # One after the other: who has tests run side by side says so in this variable.
        alone = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=limit, check=False)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        return done.stdout.strip().splitlines()[-1]

    scene.__doc__ = f"pytest {names} {words}"
    return scene


SCENES: dict[str, Callable[[float, int], str]] = {
    "random specs": compared(randomly.check, "specs"),
    "random filters": compared(randomly.check_filter, "filters"),
    "many threads": many_threads,
    "no leak": no_leak,
    "threading layers, forks, joblib, dask": again(
        "threads kernels cluster dask", "layers or fork or joblib or dask or started or cluster"
    ),
    "memory, threads and Ctrl-C at their limits": again("limits", ""),
    "guard pages": again("guard_pages", ""),
    "arrays of more than 2**31 elements": again("large", ""),
    "cache folder": again("disk tuning commands kernels", "disk or tuning or roofs or compile or cache or damaged"),
    "hostile arguments": again("fuzz", "", "--hypothesis-profile=long"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="default: the time, which is printed")
    parser.add_argument("--only", choices=SCENES, action="append", help="a scene; may be given several times")
    arguments = parser.parse_args(argv)
    chosen = {name: SCENES[name] for name in (arguments.only or SCENES)}
    end, failed = time.monotonic() + 60 * arguments.minutes, 0
    print(f"seed {arguments.seed}", flush=True)
    for n, (name, scene) in enumerate(chosen.items()):
        begun = time.monotonic()
        try:
            said = scene(begun + max(5.0, (end - begun) / (len(chosen) - n)), arguments.seed)
        except Exception:
            failed, said = failed + 1, "FAILED\n" + traceback.format_exc()
        print(f"{name}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
