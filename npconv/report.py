"""What npconv runs on here, and making it ready: `show_config` and `warmup`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from npconv import config
from npconv.arrays import available_backends, require, supported_dtype


def configuration() -> dict[str, Any]:
    """Everything that decides how npconv runs here, as plain values."""
    import platform

    versions = {name: _version(name) for name in ("npconv", "numpy", "numba", "cupy-cuda12x", "cupy-cuda13x")}
    available = available_backends()
    folder = config.cache_dir()
    return {
        "versions": {name: version for name, version in versions.items() if version},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor() if "numba" in available else platform.machine(),
        "backends": list(available),
        "backend": config.get_backend(),
        "auto": require("auto").name,
        "threads": config.get_num_threads(),
        "cpus": config.available_cpus(),
        "cache": "off" if folder is None else str(folder),
        "variables": config.VARIABLES,
    }


def show_config() -> None:
    """Print versions, backends, threads and cache folder, as `npconv info` does.

    Raises
    ------
    ValueError
        If an environment variable holds an unknown value.

    Examples
    --------
    >>> import npconv as nc
    >>> nc.show_config()  # doctest: +ELLIPSIS
    versions   npconv ...
    """
    facts = configuration()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"versions   {versions}, Python {facts['python']}")
    print(f"machine    {facts['system']}, {facts['processor']}, {facts['cpus']} CPUs usable")
    print(f"backends   {', '.join(facts['backends'])}")
    print(f"backend    {facts['backend']} ({facts['auto']} for NumPy arrays where it is auto)")
    print(f"threads    {facts['threads']}")
    print(f"cache      {facts['cache']}")
    for name, meaning in facts["variables"].items():
        print(f"variable   {name}: {meaning}")


def warmup(dtypes: tuple[Any, ...] = ("float32", "float64")) -> float:
    """Compile every loop of the numba backend for some dtypes, or load it from the cache, before it is needed.

    Parameters
    ----------
    dtypes : tuple of str or numpy.dtype

    Returns
    -------
    float
        Seconds that it took.

    Raises
    ------
    ImportError
        If Numba is missing.
    TypeError
        If `dtypes` is no sequence, or one of them is not supported.

    Examples
    --------
    >>> import npconv as nc
    >>> seconds = nc.warmup(("float32",))
    """
    from npconv.gradients import conv_vjp
    from npconv.patches import fold, unfold
    from npconv.pooling import max_pool_vjp

    if isinstance(dtypes, str) or not isinstance(dtypes, Iterable):
        raise TypeError(f"dtypes must be a sequence such as ('float32',), got {dtypes!r}")
    wanted = [supported_dtype("dtypes", dtype) for dtype in dtypes]
    start = time.perf_counter()
    with config.use_backend("numba"):
        for dtype in wanted:
            x, w = np.ones((1, 1, 4, 4), dtype), np.ones((1, 1, 2, 2), dtype)
            for algorithm in ("direct", "im2col"):
                y, pullback = conv_vjp(x, w, algorithm=algorithm)
                pullback(y)
            y, pool_back = max_pool_vjp(x, 2)
            pool_back(y)
            fold(unfold(x, (2, 2)), (4, 4), (2, 2))
    return time.perf_counter() - start


def _version(name: str) -> str | None:
    import importlib.metadata  # takes longer to load than all of npconv

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    from llvmlite import binding

    return str(binding.get_host_cpu_name())
