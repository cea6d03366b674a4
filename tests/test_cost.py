"""What a convolution costs: the lecture's and the papers' figures, and the definition's loops counted one by one."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import npconv as nc
from npconv import cost, nn, reference
from npconv.geometry import ConvSpec
from npconv.machine import LECTURE, NAMED, Machine

LAYER = cost.conv((1, 100, 64, 64), (100, 100, 5, 5), padding="same")
CPU, GPU = LECTURE


def costs():
    counts = st.integers(0, 10**20)
    return st.builds(cost.Cost, st.sampled_from(["a", "b"]), counts, counts, counts, counts)


@st.composite
def layers(draw):
    """Keyword arguments of `cost.conv` for a small layer of one to three dimensions."""
    ndim = draw(st.integers(1, 3))
    groups, c_in, c_out, batch = (draw(st.integers(1, 3)) for _ in range(4))
    kernel, size, stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * ndim)) for _ in range(4))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * ndim))
    assume(all(n + sum(p) > (k - 1) * d for n, p, k, d in zip(size, padding, kernel, dilation, strict=True)))
    return {
        "x_shape": (batch, groups * c_in, *size),
        "w_shape": (groups * c_out, c_in, *kernel),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


# --------------------------------------------------------------------------------------------------------------------
# The lecture's and the papers' figures
# --------------------------------------------------------------------------------------------------------------------


def test_the_lectures_layer():
    assert LAYER.macs == 100 * 100 * 5 * 5 * 64 * 64 == 1_024_000_000
    assert LAYER.flops == 2_048_000_000
    assert LAYER.parameters == 250_000
    assert LAYER.bytes == 4 * (409_600 + 250_000 + 409_600)


def test_the_lectures_job():
    job = cost.job(LAYER, layers=10, samples=1e6)
    assert job.macs == 10_240_000_000_000_000
    assert job.flops == 20_480_000_000_000_000
    assert job.parameters == 2_500_000
    assert job.seconds(CPU) / 3600 == pytest.approx(18.963, abs=5e-4)
    assert job.seconds(GPU) / 60 == pytest.approx(14.222, abs=5e-4)
    assert job.seconds(0.15e12) == job.seconds(CPU)


def test_the_lectures_table():
    one, ten, job = cost.lecture()
    assert [row.cost.macs for row in (one, ten, job)] == [1_024_000_000, 10_240_000_000, 10_240_000_000_000_000]
    assert [row.cost.parameters for row in (one, ten, job)] == [250_000, 2_500_000, 2_500_000]
    assert job.seconds == (job.cost.seconds(CPU), job.cost.seconds(GPU))
    names, heads, *lines = cost.table((one, ten, job)).splitlines()
    assert names.split("  ")[-2:] == ["lecture's CPU", "lecture's GPU"]
    assert heads.split() == ["MACs", "FLOPs", "parameters", "bytes", "0.15", "TMAC/s", "12", "TMAC/s"]
    cells = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    assert cells == [
        ["conv 100 -> 100, 5x5", "1.02 GMAC", "2.05 GFLOP", "250,000", "4.28 MB", "6.827 ms", "85.33 µs"],
        ["10 layers", "10.2 GMAC", "20.5 GFLOP", "2,500,000", "42.8 MB", "68.27 ms", "853.3 µs"],
        [job.cost.name, "10.2 PMAC", "20.5 PFLOP", "2,500,000", "32.8 TB", "18.96 hours", "14.22 minutes"],
    ]
    assert job.cost.name == "10 layers, 1,000,000 samples"


def test_the_table_takes_one_more_machine():
    mine = Machine("this machine, 2 threads", 0.0512e12)
    rows = cost.lecture(mine)
    assert all(row.machines == (CPU, GPU, mine) for row in rows)
    assert rows[0].seconds[-1] == pytest.approx(0.02)
    lines = cost.table(rows).splitlines()
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "this machine, 2", "threads", "0.0512 TMAC/s", "20 ms", "200 ms", "2.315 days"
    ]  # fmt: skip


def test_lenet():
    # LeCun et al. 1998 as the textbook writes it; a dense layer is a convolution of one pixel with kernels of one.
    network = cost.stack(
        [
            cost.conv((1, 28, 28), (6, 1, 5, 5), padding=2, bias=True),
            cost.conv((6, 14, 14), (16, 6, 5, 5), bias=True),
            *(cost.conv((a, 1), (b, a, 1), bias=True) for a, b in [(400, 120), (120, 84), (84, 10)]),
        ]
    )
    assert network.parameters == 61_706
    assert network.macs == 117_600 + 240_000 + 48_000 + 10_080 + 840


def test_mobilenet():
    # Howard et al. 2017, tables 1 and 4: 569 million multiply-adds and 4.2 million parameters; 4866 and 29.3 million
    # with dense 3x3 layers, where the paper seems to leave out the classifier's one million multiply-adds.
    size, channels, pairs = 112, 32, []
    doubled = [(width, stride) for width in (128, 256, 512, 1024) for stride in (2, 1)]
    for out, stride in [(64, 1), *doubled[:6], *[(512, 1)] * 4, *doubled[6:]]:
        pairs.append(cost.separable(channels, out, 3, (size, size), stride))
        size, channels = size // stride, out
    first = cost.conv((3, 224, 224), (32, 3, 3, 3), stride=2, padding="same")
    last = cost.conv((1024, 1), (1000, 1024, 1), bias=True)
    separable = cost.stack([first, *(p.pair for p in pairs), last], "MobileNet")
    dense = cost.stack([first, *(p.dense for p in pairs), last])
    assert (round(separable.macs / 1e6), round(separable.parameters / 1e6, 1)) == (569, 4.2)
    assert (round((dense.macs - last.macs) / 1e6), round(dense.parameters / 1e6, 1)) == (4866, 29.3)
    assert separable.name == "MobileNet"


# --------------------------------------------------------------------------------------------------------------------
# One convolution
# --------------------------------------------------------------------------------------------------------------------


def loops(x_shape, w_shape, stride, padding, dilation, groups):
    """Multiplications of the definition, one by one, from its own loops; input elements and padding alike."""
    padded = [n + sum(p) for n, p in zip(x_shape[2:], padding, strict=True)]
    positions = [
        [p for p in range(0, n, s) if p + (k - 1) * d < n]
        for n, k, s, d in zip(padded, w_shape[2:], stride, dilation, strict=True)
    ]
    macs = 0
    for _n, _o, *_position in itertools.product(range(x_shape[0]), range(w_shape[0]), *positions):
        for _c in range(x_shape[1] // groups):
            for _tap in np.ndindex(*w_shape[2:]):
                macs += 1
    return macs


@given(layers())
def test_macs_are_the_multiplications_of_the_definition(layer):
    assert cost.conv(**layer).macs == loops(**layer)


@given(layers(), st.booleans(), st.sampled_from(["float16", "float32", "float64", "complex128", "int8"]))
def test_bytes_are_those_of_the_arrays(layer, bias, dtype):
    x, w = np.zeros(layer["x_shape"], dtype), np.zeros(layer["w_shape"], dtype)
    b = np.zeros(w.shape[:1], dtype) if bias else None
    y = nc.conv(x, w, b, **{k: v for k, v in layer.items() if not k.endswith("shape")}, backend="numpy")
    found = cost.conv(**layer, bias=bias, dtype=dtype)
    assert found.bytes == x.nbytes + w.nbytes + y.nbytes + (b.nbytes if bias else 0)
    assert found.activation_bytes == x.nbytes + y.nbytes
    assert found.parameters == w.size + (w.shape[0] if bias else 0)


@given(layers())
def test_flops_are_always_twice_the_macs(layer):
    one = cost.conv(**layer)
    for value in (one, one + one, 3 * one, one.samples(7), cost.job(one, 2, 5), cost.stack([one, one, one])):
        assert value.flops == 2 * value.macs


def test_a_cost_from_a_spec_is_that_of_the_shapes():
    spec = ConvSpec.of((2, 8, 9, 9), (4, 4, 3, 3), 2, 1, 1, 2)
    assert cost.Cost.of(spec, bias=True, dtype="float64") == cost.conv(
        (2, 8, 9, 9), (4, 4, 3, 3), 2, 1, 1, 2, bias=True, dtype="float64"
    )


def test_channels_last_costs_the_same():
    assert cost.conv((1, 9, 9, 8), (4, 8, 3, 3), layout="channels_last") == cost.conv((1, 8, 9, 9), (4, 8, 3, 3))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "groups", "name"),
    [
        ((8, 9), (4, 8, 3), 1, "conv 8 -> 4, 3"),
        ((8, 9, 9), (4, 8, 1, 1), 1, "pointwise 8 -> 4"),
        ((8, 9, 9), (8, 1, 3, 2), 8, "conv 8 -> 8, 3x2, 8 groups"),
    ],
)
def test_a_layer_is_named_after_its_shape(x_shape, w_shape, groups, name):
    assert cost.conv(x_shape, w_shape, groups=groups).name == name
    assert cost.conv(x_shape, w_shape, groups=groups, name="mine").name == "mine"


def test_it_prints_itself():
    assert str(LAYER) == "conv 100 -> 100, 5x5: 1.02 GMAC = 2.05 GFLOP, 250,000 parameters, 4.28 MB"


# --------------------------------------------------------------------------------------------------------------------
# Depthwise-separable pairs
# --------------------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 5), st.integers(5, 20)), min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from(["same", "valid", 2]),
)
def test_the_ratio_is_the_papers_formula(c_in, c_out, axes, stride, padding):
    kernel, size = zip(*axes, strict=True)
    layer = cost.separable(c_in, c_out, kernel, size, stride, padding)
    assert Fraction(layer.pair.macs, layer.dense.macs) == Fraction(1, c_out) + Fraction(1, math.prod(kernel))
    assert layer.ratio == pytest.approx(1 / c_out + 1 / math.prod(kernel))


@pytest.mark.parametrize("bias", [False, True])
def test_a_pair_is_its_two_layers(bias):
    layer = cost.separable(32, 64, 3, (12, 10), 2, 2, 2, bias=bias, dtype="float64")
    deep = cost.conv((32, 12, 10), (32, 1, 3, 3), 2, 2, 2, 32, bias=bias, dtype="float64")
    point = cost.conv((32, 6, 5), (64, 32, 1, 1), bias=bias, dtype="float64")
    dense = cost.conv((32, 12, 10), (64, 32, 3, 3), 2, 2, 2, bias=bias, dtype="float64")
    assert layer.pair.macs == (32 * 9 + 32 * 64) * 6 * 5
    for found, expected in [(layer.depthwise, deep), (layer.pointwise, point), (layer.dense, dense)]:
        assert found.macs == expected.macs
        assert found.parameters == expected.parameters
        assert found.bytes == expected.bytes
    assert layer.pair.macs == deep.macs + point.macs
    assert layer.pair.parameters == deep.parameters + point.parameters
    assert layer.pair.bytes == deep.bytes + point.bytes


def test_the_intermediate_result_is_written_and_read():
    layer = cost.separable(32, 64, 3, (12, 10), stride=2)
    ends = 4 * (32 * 12 * 10 + 64 * 6 * 5)
    assert layer.intermediate_bytes == 4 * 32 * 6 * 5
    assert layer.pair.activation_bytes == ends + 2 * layer.intermediate_bytes
    assert layer.dense.activation_bytes == ends


# --------------------------------------------------------------------------------------------------------------------
# Sums, stacks, jobs
# --------------------------------------------------------------------------------------------------------------------


@given(costs(), costs(), costs())
def test_sums_are_associative(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert cost.stack([a, b, c], "a") == cost.stack([a + b, c], "a") == cost.stack([c, b, a], "a")


@given(costs(), st.integers(0, 5))
def test_times_is_repeated_addition(a, n):
    assert n * a == a * n == a.times(n)
    assert cost.stack([a] * n, "x") == cost.stack([n * a], "x")


@given(costs(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_more_samples_are_more_work_on_the_same_parameters(a, n, m):
    both, one, other = a.samples(n + m), a.samples(n), a.samples(m)
    assert both.macs == one.macs + other.macs
    assert both.activation_bytes == one.activation_bytes + other.activation_bytes
    assert both.parameters == a.parameters
    assert both.bytes == a.weight_bytes + (n + m) * a.activation_bytes


@given(layers(), st.integers(1, 5))
def test_samples_are_a_batch(layer, n):
    batch, *rest = layer["x_shape"]
    whole = cost.conv(**{**layer, "x_shape": (n * batch, *rest)}, name="x")
    parts = cost.conv(**layer).samples(n)
    assert (whole.macs, whole.bytes, whole.parameters) == (parts.macs, parts.bytes, parts.parameters)


def test_names():
    a, b = (cost.Cost(name, 1, 2, 3, 4) for name in "ab")
    assert (a + b).name == "a + b"
    assert (10 * a).name == "10 x a"
    assert a.samples(1).name == "a, 1 sample"
    assert cost.stack([a]).name == "1 layer"
    assert cost.job(a, 3, 2000).name == "3 layers, 2,000 samples"


def test_nothing_costs_nothing():
    assert cost.stack([]) == cost.Cost("0 layers", 0, 0, 0, 0)


def test_work_may_pass_64_bits():
    assert cost.job(LAYER, layers=10**6, samples=10**12).macs == 1_024_000_000 * 10**18


def test_a_cost_is_a_value():
    assert len({LAYER, cost.conv((1, 100, 64, 64), (100, 100, 5, 5), padding=2), 2 * LAYER}) == 2
    with pytest.raises(AttributeError):
        LAYER.macs = 1


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------


def test_columns_are_aligned():
    lines = cost.table([*cost.lecture(), LAYER]).splitlines()
    assert all(line.startswith(" ") for line in lines[:2])
    assert {len(line) for line in lines[1:-1]} == {len(lines[0])}
    assert lines[-1] == lines[2][: len(lines[-1])]  # the same layer, without times
    assert "ms" in lines[2][len(lines[-1]) :]


def test_a_table_of_nothing_has_a_heading():
    assert cost.table([]).split() == ["MACs", "FLOPs", "parameters", "bytes"]


# --------------------------------------------------------------------------------------------------------------------
# Bad input
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cost.conv((1, 3, 8, 8), (4, 2, 3, 3)), ValueError, "x_shape has 3 channels"),
        (lambda: cost.conv((1, 3, 8, 8), (4, 3)), ValueError, "w_shape must have at least 3 dimensions"),
        (lambda: cost.conv(8, (4, 3, 3)), TypeError, "x_shape must be a shape"),
        (lambda: cost.conv((3, 8), (4, 3, 3), 0), ValueError, "stride must be positive"),
        (lambda: cost.conv((3, 8), (4, 3, 3), padding="big"), ValueError, "padding must be one of"),
        (lambda: cost.conv((3, 8), (4, 3, 3), groups=1.5), TypeError, "groups must be an integer"),
        (lambda: cost.conv((3, 8), (4, 3, 3), layout="last"), ValueError, "layout must be one of"),
        (lambda: cost.conv((3, 8), (4, 3, 3), bias=np.zeros(4)), TypeError, "bias must be True or False"),
        (lambda: cost.conv((3, 8), (4, 3, 3), dtype="float31"), TypeError, "dtype such as float32, got 'float31'"),
        (lambda: cost.conv((3, 8), (4, 3, 3), dtype=None), TypeError, "dtype must be an integer, floating"),
        (lambda: cost.conv((3, 8), (4, 3, 3), dtype="U3"), TypeError, "dtype must be an integer, floating"),
        (lambda: cost.separable(0, 4, 3, (8, 8)), ValueError, "in_channels must be positive"),
        (lambda: cost.separable(4, 0, 3, (8, 8)), ValueError, "out_channels must be positive"),
        (lambda: cost.separable(4, 4, (3, 3, 3), (8, 8)), ValueError, "kernel_size must be an integer or 2"),
        (lambda: cost.separable(4, 4, 0, (8, 8)), ValueError, "kernel_size must be positive"),
        (lambda: cost.separable(4, 4, 3, 8), TypeError, "size must be a shape"),
        (lambda: cost.separable(4, 4, 3, (8, 0)), ValueError, "size must have one positive number"),
        (lambda: cost.separable(4, 4, 3, ()), ValueError, "size must have one positive number"),
        (lambda: LAYER * 2.5, TypeError, "layers must be an integer"),
        (lambda: LAYER * -1, ValueError, "layers must be zero or more"),
        (lambda: LAYER + 1, TypeError, "unsupported operand"),
        (lambda: LAYER.samples(math.inf), TypeError, "samples must be an integer"),
        (lambda: LAYER.samples(True), TypeError, "samples must be an integer"),
        (lambda: LAYER.seconds(0), ValueError, "machine must have a positive, finite rate in MACs per second, got 0"),
        (lambda: LAYER.seconds(math.nan), ValueError, "machine must have a positive"),
        (lambda: LAYER.seconds(-1.0), ValueError, "machine must have a positive"),
        (lambda: Machine("broken", -1.0), ValueError, "macs_per_second must be above zero, got -1.0"),
        (lambda: Machine("broken", 1e9, "fast"), TypeError, "bytes_per_second must be a number, got 'fast'"),
        (lambda: LAYER.seconds("fast"), TypeError, "machine must be a Machine or a rate in MACs per second"),
        (lambda: cost.job("layer"), TypeError, "layer must be a Cost"),
        (lambda: cost.job(LAYER, layers="ten"), TypeError, "layers must be an integer"),
        (lambda: cost.job(LAYER, samples=0.5), TypeError, "samples must be an integer"),
        (lambda: cost.job(LAYER, 1e200, 1e200), ValueError, "macs must be at most 1e300"),
        (lambda: cost.stack(LAYER), TypeError, "layers must be a sequence of Cost"),
        (lambda: cost.stack([LAYER, 3]), TypeError, r"layers\[1\] must be a Cost"),
        (lambda: cost.lecture(0.15e12), TypeError, r"machines\[0\] must be a Machine"),
        (lambda: cost.table([LAYER, "x"]), TypeError, r"rows\[1\] must be a Row or a Cost"),
        (lambda: cost.model(nn.ReLU()), TypeError, "x_shape must be given"),
        (lambda: cost.model(nn.ReLU(), (1, 3), step="up"), ValueError, "step must be one of forward, backward"),
        (lambda: cost.model(nn.compile(nn.ReLU(), (3,)), (1, 4)), ValueError, "must be of shape any x 3, got 1 x 4"),
        (lambda: cost.model(nn.compile(nn.ReLU(), (3,)), dtype="float64"), ValueError, "dtype must be left out"),
        (lambda: cost.Cost("x", -1, 0, 0, 0), ValueError, "macs must be zero or more"),
        (lambda: cost.Cost("x", 0, 0.5, 0, 0), TypeError, "parameters must be an integer"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --------------------------------------------------------------------------------------------------------------------
# Backward, training, roofs, networks, variations
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_backward_is_twice_forward_whatever_the_groups(groups, stride):
    # Sums of products of ones count the multiplications of each operation, on the definition itself.
    x, w = np.ones((2, 4, 7, 6)), np.ones((8, 4 // groups, 3, 2))
    layer = cost.conv(x.shape, w.shape, stride, groups=groups)
    options = {"stride": (stride,) * 2, "padding": ((0, 0),) * 2, "dilation": (1, 1), "groups": groups}
    y = reference.conv(x, w, **options)
    dx = reference.conv_input_grad(np.ones_like(y), w, x.shape[2:], **options)
    dw = reference.conv_weight_grad(x, np.ones_like(y), w.shape[2:], **options)
    assert (y.sum(), dx.sum(), dw.sum()) == (layer.macs,) * 3
    assert layer.backward().macs == dx.sum() + dw.sum() == 2 * layer.macs
    assert layer.backward(input_grad=False).macs == dw.sum()
    assert layer.training().macs == 3 * layer.macs


def test_backward_moves_what_the_gradients_read_and_write():
    layer = cost.conv((2, 3, 8, 8), (4, 3, 3, 3), dtype="float64", bias=True)
    x, w, y = 2 * 3 * 8 * 8, 4 * 3 * 9 + 4, 2 * 4 * 6 * 6
    assert layer.bytes == 8 * (x + w + y)
    assert layer.backward().bytes == 8 * ((y + w + x) + (x + y + w))
    assert layer.backward().parameters == layer.training().parameters == w


def test_a_mac_is_never_called_a_flop():
    layer = cost.conv((1, 3, 8, 8), (4, 3, 3, 3))
    for each in (layer, layer.backward(), layer.training(), 3 * layer, layer.samples(5)):
        assert each.flops == 2 * each.macs
    h100 = NAMED["h100"]
    assert h100.flops_per_second == 67e12, "the data sheet counts FLOPs"
    assert h100.macs_per_second == 33.5e12
    assert cost.job(layer, 1000, 1000).seconds(Machine("compute", h100.macs_per_second)) == pytest.approx(
        1e6 * layer.flops / h100.flops_per_second
    )


def test_the_lower_roof_decides():
    layer = cost.conv((1, 64, 56, 56), (64, 1, 3, 3), padding=1, groups=64)
    slow, fast = Machine("memory", 1e12, 1e9), Machine("arithmetic", 1e9, 1e12)
    assert layer.seconds(slow) == layer.bytes / 1e9
    assert layer.seconds(fast) == layer.macs / 1e9
    assert layer.intensity == layer.flops / layer.bytes
    assert fast.ridge < layer.intensity < slow.ridge
    assert layer.seconds(slow.times(4)) == pytest.approx(layer.seconds(slow) / 4)


def test_a_network_costs_its_layers():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, rng=0),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Add(nn.Sequential(), nn.Conv2d(8, 8, 3, padding=1, groups=8, rng=0)),
        nn.ConvTranspose2d(8, 4, 2, stride=2, rng=0),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 10, rng=0),
    )
    before = {name: value.copy() for name, value in network.state_dict().items()}
    rows = cost.model(network, (2, 3, 8, 8))
    macs = {row.name: row.macs for row in rows if row.macs}
    assert macs == {
        "0: Conv2d": 2 * 8 * 4 * 4 * 27,
        "3.1: Conv2d": 2 * 8 * 4 * 4 * 9,
        "4: ConvTranspose2d": 2 * 8 * 4 * 4 * 4 * 4,
        "6: Linear": 2 * 256 * 10,
    }
    assert sum(row.parameters for row in rows) == sum(p.value.size for p in network.parameters())
    for name, value in network.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(TypeError, match="network must be"):
        cost.model(lambda x: x, (1, 3, 8, 8))


def test_a_network_made_for_inference_costs_what_the_network_does():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=False, rng=0), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, rng=0), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 4 * 4, 5, rng=0),
    ).eval()  # fmt: skip
    layers = cost.stack(cost.model(net, (2, 3, 17, 17)))
    steps = cost.model(nn.compile(net, (3, 17, 17)), (2, 3, 17, 17))
    assert cost.stack(steps).macs == layers.macs
    # Batch normalisation became the convolution's bias, so eight numbers of it are left.
    assert cost.stack(steps).parameters == layers.parameters - 16 + 8
    first = cost.conv((2, 3, 17, 17), (8, 3, 3, 3), 2, bias=True)
    assert (steps[0].macs, steps[0].bytes) == (first.macs, first.bytes)
    assert cost.stack(cost.model(nn.compile(net, (3, 17, 17)))).macs * 2 == layers.macs


def test_steps_of_training_are_counted_by_what_they_have_to_give():
    net = nn.Sequential(nn.ReLU(), nn.Conv1d(2, 3, 3, rng=0), nn.ReLU(), nn.Conv1d(3, 1, 3, rng=0))
    steps = [cost.model(net, (5, 2, 20), step=step) for step in ("forward", "backward", "training")]
    # Nobody needs the gradient of the input; a rectifier has no other, a convolution has two.
    for one, passes in zip(zip(*steps, strict=True), (0, 1, 1, 2), strict=True):
        assert [c.macs for c in one] == [n * one[0].macs for n in (1, passes, 1 + passes)]
        assert [c.bytes for c in one] == [n * one[0].bytes for n in (1, passes, 1 + passes)]
        assert {c.parameters for c in one} == {one[0].parameters}


def test_a_separable_pair_saves_as_much_in_training():
    pair = cost.separable(8, 16, 3, (10, 10))
    assert (pair.backward().pair.macs, pair.training().pair.macs) == (2 * pair.pair.macs, 3 * pair.pair.macs)
    assert pair.training().ratio == pair.backward().ratio == pair.ratio
    assert pair.training().intermediate_bytes == 3 * pair.intermediate_bytes


def test_halving_the_image_and_doubling_the_channels_keeps_the_arithmetic():
    as_is, no_padding, half, wide, both = cost.variations((1, 8, 16, 16), (8, 8, 3, 3))
    assert no_padding.macs == 14 * 14 * 8 * 8 * 9
    assert (4 * half.macs, half.parameters) == (as_is.macs, as_is.parameters)
    assert (wide.macs, wide.parameters) == (4 * as_is.macs, 4 * as_is.parameters)
    assert (both.macs, both.parameters) == (as_is.macs, 4 * as_is.parameters)
    assert len(cost.variations((1, 8, 2, 2), (8, 8, 3, 3))) == 4, "nothing is left of it without padding"
