"""What npconv runs on here, and making it ready: `show_config` and `warmup`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from npconv import config
from npconv.arrays import available_backends, require, supported_dtype

INSTRUCTIONS = ("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "neon", "sve")
"""Those that decide how fast npconv is here."""

COMMON: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1, "stride": 2}),
    ((1, 64, 56, 56), (64, 64, 1, 1), {}),
    ((1, 64, 56, 56), (64, 1, 3, 3), {"padding": 1, "groups": 64}),
    ((1, 64, 56, 56), (64, 1, 3, 3), {"padding": 1, "groups": 64, "stride": 2}),
)
"""Input, weights and geometry of what most networks are made of."""


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
        "instructions": _instructions() if "numba" in available else [],
        "blas": _blas(),
        "gpu": _gpu(),
        "backends": list(available),
        "backend": config.get_backend(),
        "auto": require("auto").name,
        "threads": config.get_num_threads(),
        "cpus": config.available_cpus(),
        "cache": "off" if folder is None else str(folder),
        "variables": config.VARIABLES,
    }


def show_config() -> None:
    """Print versions, processor, GPU, backends, threads, BLAS and cache folder, as `npconv info` does.

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
    instructions = f" ({', '.join(facts['instructions'])})" if facts["instructions"] else ""
    print(f"machine    {facts['system']}, {facts['processor']}{instructions}, {facts['cpus']} CPUs usable")
    print(f"GPU        {facts['gpu']['name'] or 'none: ' + facts['gpu']['missing']}")
    print(f"backends   {', '.join(facts['backends'])}")
    print(f"backend    {facts['backend']} ({facts['auto']} for NumPy arrays where it is auto)")
    print(f"threads    {facts['threads']}, plain threads of Python: no layer of Numba's, nor of OpenMP")
    print(f"BLAS       {facts['blas']}, behind NumPy, for the backend numpy")
    print(f"cache      {facts['cache']}")
    for name, meaning in facts["variables"].items():
        print(f"variable   {name}: {meaning}")


def warmup(dtypes: tuple[Any, ...] = ("float32", "float64")) -> float:
    """Compile what most networks run on, or load it from the cache, before it is needed.

    For each dtype: the loops of the backend numba that serve every geometry, and for floats those that are written for
    one, of 1x1, 3x3 and depthwise 3x3 convolutions, and those of batch normalisation with a rectifier, forward and
    backward. What is rarer, such as Winograd's tiles for other kernels, or filters, is compiled when it is first met.
    All of it is kept in the cache folder.

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
    from npconv.conv import plan
    from npconv.gradients import conv_vjp
    from npconv.normalization import batch_norm_vjp
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
            for x_shape, w_shape, geometry in COMMON if dtype.kind == "f" else ():
                x, w = np.ones(x_shape, dtype), np.ones(w_shape, dtype)
                y, pullback = conv_vjp(x, w, **geometry)
                pullback(y)
                plan(x_shape, w_shape, **geometry, dtype=dtype).pack(w)(x)
            for size in (16, 144) if dtype.kind == "f" else ():
                y, _, _, pullback = batch_norm_vjp(np.ones((1, 1, size), dtype), activation="relu")
                pullback(y)
    return time.perf_counter() - start


def _version(name: str) -> str | None:
    import importlib.metadata  # takes longer to load than all of npconv

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _instructions() -> list[str]:
    """What the loops are compiled for, of what matters."""
    kernels: Any = require("numba").kernels
    return [name for name in INSTRUCTIONS if name in kernels.blocking.features()]


def _blas() -> str:
    """What NumPy multiplies matrices with."""
    shown: Any = np.show_config(mode="dicts")
    found = shown.get("Build Dependencies", {}).get("blas", {})
    return " ".join(str(found[key]) for key in ("name", "version") if found.get(key)) or "unknown"


def _gpu() -> dict[str, str | None]:
    """The current GPU, or why there is none."""
    try:
        runtime = require("cupy").xp.cuda.runtime
    except (ImportError, RuntimeError) as error:
        return {"name": None, "missing": str(error)}
    return {"name": runtime.getDeviceProperties(runtime.getDevice())["name"].decode(), "missing": None}


def _processor() -> str:
    from llvmlite import binding

    return str(binding.get_host_cpu_name())
