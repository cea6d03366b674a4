"""NVIDIA's compiler on every family of kernels, for every architecture: no spills, and the budgets kept."""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import nvrtc
import pytest
from fake_cupy import poisoned

from npconv.algorithms.winograd import matrices
from npconv.geometry import ConvSpec, Window
from npconv.kernels.cuda import depthwise, depthwise_last, implicit_gemm, launch, loader, windows, winograd
from npconv.kernels.cuda.launch import Launch

ARCHITECTURES = (75, 80, 90, 120)
SOME = {
    element: ARCHITECTURES if element == "float32" else (ARCHITECTURES[i % 4],)
    for i, element in enumerate(launch.ELEMENTS)
}
"""The float32 kernels are compiled for all, the others for one of them in turn, to save time."""

REGISTERS = 65536
"""Registers of a multiprocessor, on all of these."""


@pytest.fixture(autouse=True)
def _nvrtc():
    if nvrtc.library() is None:
        if os.environ.get("CI", "").lower() == "true" and (platform.system(), platform.machine()) == (
            "Linux",
            "x86_64",
        ):
            pytest.fail("CI must have the package nvidia-cuda-nvrtc")
        pytest.skip("needs the package nvidia-cuda-nvrtc")


def memory(element: str) -> str:
    return "uint16" if element == "bfloat16" else element


def compile_for(architecture: int, plan: Launch) -> nvrtc.Usage:
    # CuPy adds these two itself.
    added = ("-ftz=true", f"-arch=sm_{architecture}")
    cubin, log = nvrtc.compiled(
        loader.source(plan.kernel.source),
        (*loader.OPTIONS, *plan.kernel.options, *added, "--ptxas-options=-v", "-Werror=all-warnings"),
    )
    assert cubin[:4] == b"\x7fELF"
    return nvrtc.usage(log, plan.kernel.name)


def check(plan: Launch, architectures=ARCHITECTURES) -> None:
    resident = dict(plan.kernel.defines).get("RESIDENT", 1)
    # The compiler runs without the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        uses = list(pool.map(lambda architecture: compile_for(architecture, plan), architectures))
    for architecture, used in zip(architectures, uses, strict=True):
        where = plan.kernel, architecture, used
        assert used.spilled == used.stack == 0, where
        # Registers are handed out to warps by eights.
        assert -(-used.registers // 8) * 8 * plan.threads * resident <= REGISTERS, where
        assert used.shared + plan.shared <= launch.MOST_SHARED, where


def convolutions(family, spec: ConvSpec, element: str, **options) -> Iterator[Launch]:
    def array(shape, dtype=None):
        return poisoned(shape, dtype or memory(element))

    x, w, y = map(array, (spec.x_shape, spec.w_shape, spec.y_shape))
    yield family.forward(spec, x, w, None, "relu", y, element, **options)
    yield family.input_grad(spec, y, w, x, element, **options)
    yield from family.weight_grad(spec, x, y, w, array, element, **options)


def depthwise_spec(size, kernel, stride=1, dilation=1) -> ConvSpec:
    padding = tuple(k // 2 * dilation for k in kernel)
    return ConvSpec.of((8, 8, *size), (8, 1, *kernel), stride, padding, dilation, 8)


@pytest.mark.parametrize("element", launch.ELEMENTS)
def test_depthwise(element: str) -> None:
    for plan in convolutions(depthwise, depthwise_spec((56, 56), (3, 3)), element):
        check(plan, SOME[element])


@pytest.mark.parametrize("element", ["float32", "bfloat16"])
def test_depthwise_of_channels_last(element: str) -> None:
    architectures = (75, 120) if element == "float32" else (90,)
    for plan in convolutions(depthwise_last, depthwise_spec((56, 56), (3, 3)), element):
        check(plan, architectures)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation"),
    [
        ((56, 56), (5, 5), 1, 1), ((56, 56), (7, 7), 1, 1), ((56, 56), (3, 3), 2, 1), ((56, 56), (5, 5), 2, 1),
        ((64, 64), (31, 31), 1, 1), ((64, 64), (3, 3), 1, 2), ((64, 64), (3, 3), 3, 4), ((512,), (9,), 1, 1),
        ((9, 16, 16), (3, 3, 3), 1, 1),
    ],
)  # fmt: skip
def test_depthwise_of_other_geometries(size, kernel, stride, dilation) -> None:
    for plan in convolutions(depthwise, depthwise_spec(size, kernel, stride, dilation), "float32"):
        check(plan, (80,))


def gemm_spec(size=(14, 14), stride=1) -> ConvSpec:
    return ConvSpec.of((4, 64, *size), (64, 64, *(3,) * len(size)), stride, 1)


@pytest.mark.parametrize("element", launch.ELEMENTS)
def test_implicit_gemm(element: str) -> None:
    for plan in convolutions(implicit_gemm, gemm_spec(), element):
        check(plan, SOME[element])


@pytest.mark.parametrize(
    ("size", "tile"), [(size, tile) for size, tiles in implicit_gemm.TILES.items() for tile in tiles]
)
def test_every_tile(size: int, tile: implicit_gemm.Tile, monkeypatch) -> None:
    monkeypatch.setattr(implicit_gemm, "TILES", {size: (tile,)})
    element = {4: "float32", 8: "float64", 16: "complex128"}[size]
    for plan in itertools.islice(convolutions(implicit_gemm, gemm_spec(stride=2), element), 2):
        check(plan, (90,))


@pytest.mark.parametrize(
    ("products", "number", "architectures"),
    [
        ("float16", 0, (80, 120)), ("bfloat16", 0, (80,)), ("tf32", 0, (120,)), ("3xtf32", 0, (80, 90, 120)),
        *(("3xtf32", i, (90,)) for i in range(1, 5)),
    ],
)  # fmt: skip
def test_tensor_cores(products: str, number: int, architectures, monkeypatch) -> None:
    element = "float32" if "tf32" in products else products
    size = implicit_gemm.itemsize(element)
    monkeypatch.setattr(implicit_gemm, "TENSOR_TILES", {size: (implicit_gemm.TENSOR_TILES[size][number],)})
    plans = convolutions(implicit_gemm, gemm_spec(), element, products=products)
    for plan in itertools.islice(plans, 3 if number == 0 else 1):
        check(plan, architectures)


@pytest.mark.parametrize(
    ("element", "products", "architectures"), [("float32", None, (75,)), ("float16", "float16", (90,))]
)
def test_images_with_channels_last(element: str, products: str | None, architectures) -> None:
    spec = gemm_spec()
    x, w, y = (poisoned(shape, element) for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    check(implicit_gemm.forward(spec, x, w, None, "relu", y, products=products, last=True), architectures)
    check(implicit_gemm.input_grad(spec, y, w, x, products=products, last=True), architectures)


@pytest.mark.parametrize("element", ["float32", "float64"])
def test_pointwise(element: str) -> None:
    spec = ConvSpec.of((4, 64, 14, 14), (64, 64, 1, 1))
    for plan in itertools.islice(convolutions(implicit_gemm, spec, element), 2):
        assert dict(plan.kernel.defines)["LOAD"] > 1
        check(plan, (75, 90))


def test_volumes_and_offsets_of_64_bits(monkeypatch) -> None:
    for plan in convolutions(implicit_gemm, gemm_spec((6, 7, 8)), "float32"):
        check(plan, (120,))
    monkeypatch.setattr(launch, "_MOST_INT", 0)
    for plan in convolutions(implicit_gemm, gemm_spec(), "float32"):
        check(plan, (75,))
    for plan in convolutions(depthwise, depthwise_spec((56, 56), (3, 3)), "float32"):
        check(plan, (75,))


@pytest.mark.parametrize("element", launch.ELEMENTS)
def test_windows(element: str) -> None:
    window = Window.over((9, 9), (3, 3), 2, 1)
    x, y = (poisoned((2, 3, *size), memory(element)) for size in (window.size, window.out))
    columns, winner = poisoned((2, 3, window.taps, window.positions), memory(element)), poisoned(y.shape, np.int64)
    check(windows.unfold(window, x, columns, element), SOME[element][:1])
    check(windows.fold(window, columns, x, element), SOME[element][:1])
    check(windows.max_pool(window, x, y, winner, element), SOME[element][:1])
    check(windows.max_pool_grad(window, y, winner, x, element), SOME[element][:1])


@pytest.mark.parametrize(
    ("tile", "architectures"), [(((2, 3), (2, 3)), ARCHITECTURES), (((4, 3), (4, 3)), (90,))], ids=["F(2,3)", "F(4,3)"]
)
def test_winograd(tile, architectures) -> None:
    # F(6,3), 5 s a kernel here, fits as well.
    spec, fs = ConvSpec.of((4, 16, 24, 24), (16, 16, 3, 3), padding=1), matrices(tile)
    x, w, y = (poisoned(shape, "float32") for shape in (spec.x_shape, spec.w_shape, spec.y_shape))
    points = winograd.Points(poisoned((len(fs[0].bt) ** 2, 16, 16), "float32"), w)
    data, _, results = winograd.forward(spec, fs, x, points, None, "relu", y, poisoned)
    for plan in (winograd.weights(spec, fs, points), data, results):
        check(plan, architectures)
