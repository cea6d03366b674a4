"""Pictures: as they look, in light and in dark, and as what they draw, arrays and artists.

``python tests/test_plot.py`` makes the pictures that they are compared with, tests/pictures/, anew: look at them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

import npconv as nc
from npconv import nn, plot
from npconv.plot.axes import COLORS

mpl.use("agg")
import matplotlib.pyplot as plt

LAYER = nc.cost.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1)
MACHINE = nc.machine.NAMED["h100"]
NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3, rng=0), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2, rng=1))
IMAGE = np.random.default_rng(0).random((3, 24, 32))

DRAWN = {
    "feature_maps": lambda ax: plot.feature_maps(IMAGE, ax=ax),
    "kernels": lambda ax: plot.kernels(np.random.default_rng(0).normal(size=(8, 2, 3, 3)), ax=ax),
    "colour kernels": lambda ax: plot.kernels(np.random.default_rng(0).normal(size=(8, 3, 5, 5)), ax=ax),
    "heat": lambda ax: plot.heat(IMAGE, IMAGE[0, ::8, ::8], ax=ax),
    "training_curves": lambda ax: plot.training_curves({"a": [3, 2, 1], "b": [3.5, 2.5, 2]}, ax=ax),
    "confusion_matrix": lambda ax: plot.confusion_matrix([[9, 1], [3, 7]], ["cat", "dog"], ax=ax),
    "roofline": lambda ax: plot.roofline([LAYER], MACHINE, ax=ax),
    "algorithm_map": lambda ax: plot.algorithm_map((1, 64), (14, 56), backend="numpy", ax=ax),
    "receptive_field": lambda ax: plot.receptive_field(NETWORK, IMAGE, (2, 3), ax=ax),
    "occlusion": lambda ax: plot.occlusion(lambda x: x.mean(axis=(1, 2, 3)), IMAGE, ax=ax),
}


PICTURES = Path(__file__).parent / "pictures"
TOLERANCE = 4


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def pixels(style, draw):
    """A picture as a small image, without words: each version of matplotlib draws letters its own way."""
    with plt.style.context(style):
        figure, ax = plt.subplots(figsize=(3, 3), dpi=80)
        assert draw(ax) is ax
        for words in (*figure.findobj(mpl.text.Text), *figure.findobj(mpl.legend.Legend)):
            words.set_visible(False)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def both(name):
    """A picture in light and in dark, side by side."""
    return np.hstack([pixels(style, DRAWN[name]) for style in ("default", "dark_background")])


def blurred(picture):
    """Means over blocks of 16x16 pixels: a line that another version draws a little aside stays the same grey."""
    height, width, _ = picture.shape
    return picture.astype(float).reshape(height // 16, 16, width // 16, 16, 3).mean(axis=(1, 3))


def difference(picture, other):
    """Root of the mean square of what differs in the blurred pictures, of 255."""
    return np.sqrt(np.square(blurred(picture) - blurred(other)).mean())


@pytest.mark.parametrize("name", DRAWN)
def test_every_picture_looks_as_it_did_in_light_and_in_dark(name):
    picture = both(name)
    light, dark = np.hsplit(picture, 2)
    assert (light[0, 0] == 255).all(), "the margins have the style's colour"
    assert (dark[0, 0] == 0).all()
    others = {path.stem: np.round(plt.imread(path)[..., :3] * 255) for path in PICTURES.glob("*.png")}
    assert set(others) == {each.replace(" ", "_") for each in DRAWN}
    differences = {each: difference(picture, other) for each, other in others.items()}
    # Versions 3.8 and 3.11 of matplotlib differ by up to 2.9; a mark or a curve that is missing by 4.4 and 6.2.
    assert differences.pop(name.replace(" ", "_")) < TOLERANCE
    assert min(differences.values()) > 1.5 * TOLERANCE


def seen_by_a_dichromat(rgb, matrix):
    """What is left of linear colours for an eye that lacks one of the three cones."""
    return np.clip(rgb @ np.array(matrix).T, 0, 1)


def lab(rgb):
    """CIELAB of linear sRGB, white being D65."""
    xyz = rgb @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = np.cbrt(xyz / [0.9505, 1, 1.089])
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@pytest.mark.parametrize("eye", ["three cones", "protanope", "deuteranope"])
def test_colours_are_told_apart_by_those_who_confuse_red_and_green(eye):
    """By the matrices of G. Machado, M. Oliveira, L. Fernandes, IEEE TVCG 15 (2009), severity 1."""
    matrix = {
        "three cones": np.eye(3),
        "protanope": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0519]],
        "deuteranope": [[0.3673, 0.8606, -0.2279], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0430, 0.9688]],
    }[eye]
    srgb = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in COLORS])
    seen = lab(seen_by_a_dichromat(((srgb + 0.055) / 1.055) ** 2.4, matrix))
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1)[np.triu_indices(len(COLORS), 1)]
    assert apart.min() > 10, "a difference of 2 is just seen"
    for name in ("cividis", "inferno", "PuOr"):  # the maps that are used: their ends, and for PuOr its middle
        ends = mpl.colormaps[name]([0.0, 0.5, 1.0])[:, :3]
        places = lab(seen_by_a_dichromat(((ends + 0.055) / 1.055) ** 2.4, matrix))
        assert np.linalg.norm(places[[0, 1, 2]] - places[[1, 2, 0]], axis=-1).min() > 20


@pytest.mark.parametrize("name", DRAWN)
def test_new_axes_are_made_where_none_are_given(name):
    ax = DRAWN[name](None)
    assert ax.figure.axes == [ax]


def test_feature_maps_are_tiles_with_gaps():
    maps = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    drawn = plot.feature_maps(maps, columns=2).images[0].get_array()
    np.testing.assert_array_equal(drawn[:4, 6:11], maps[1])
    np.testing.assert_array_equal(drawn[5:9, :5], maps[2])
    assert drawn.mask[4].all()
    assert drawn.mask[:, 5].all()
    assert drawn.mask[5:, 6:].all(), "nothing where there is no map"
    alone = plot.feature_maps(maps, columns=1, shared=False).images[0].get_array()
    assert (alone[:4].min(), alone[:4].max(), alone[-4:].max()) == (0, 1, 1)


def test_zero_is_in_the_middle_of_the_colours_of_kernels():
    image = plot.kernels(np.array([[[[0.0, 2.0], [-0.5, 1.0]]]])).images[0]
    assert image.norm(0.0) == 0.5
    assert image.norm.vmax == 2
    rgb = plot.kernels(np.zeros((2, 3, 3, 3))).images[0].get_array()
    assert (rgb[:3, :3, :3] == 0.5).all()


def test_a_confusion_matrix_says_counts_and_the_share_that_is_right():
    ax = plot.confusion_matrix([[9, 1], [3, 7]], ["cat", "dog"])
    assert [text.get_text() for text in ax.texts] == ["9", "1", "3", "7"]
    assert ax.get_title() == "80.0% right"


def test_what_would_not_fit_into_a_confusion_matrix_is_left_out():
    few, many = plot.confusion_matrix(np.eye(20)), plot.confusion_matrix(np.eye(21), [f"class {n}" for n in range(21)])
    assert (len(few.texts), len(many.texts)) == (20, 0)
    assert {label.get_rotation() for label in many.get_xticklabels()} == {90}
    assert len(plot.confusion_matrix(np.eye(40)).get_yticks()) == 40
    assert [label.get_text() for label in plot.confusion_matrix(np.eye(41)).get_yticklabels()][:3] != ["0", "1", "2"]


def test_a_history_is_drawn_as_losses_and_an_accuracy_with_a_scale_of_its_own():
    alone = plot.training_curves(nn.History(loss=[2.0, 1.0]))
    assert alone.figure.axes == [alone]
    np.testing.assert_array_equal(alone.lines[0].get_data(), [[1, 2], [2.0, 1.0]])
    trained = nn.History(loss=[2.0, 1.0], accuracy=[0.4, 0.6])
    ax = plot.training_curves(trained)
    share = ax.figure.axes[1]
    np.testing.assert_array_equal(share.lines[0].get_data(), [[1, 2], [40, 60]])
    assert "trained on: 60.0%" in ax.get_title()
    trained.validation_loss, trained.validation_accuracy = [1.8, 1.1], [0.5, 0.7]
    ax = plot.training_curves(trained)
    assert [line.get_label() for line in ax.lines] == ["training", "held back"]
    assert "held back: 70.0%" in ax.get_title()


def test_a_roofline_is_the_lower_of_two_roofs_and_a_layer_lies_where_it_was_measured():
    ax = plot.roofline([LAYER, 2 * LAYER], MACHINE, seconds=[1e-3, 4e-3])
    roof, *layers = ax.lines
    x, y = roof.get_data()
    np.testing.assert_allclose(y, np.minimum(x * MACHINE.bytes_per_second, MACHINE.flops_per_second))
    assert [line.get_xdata()[0] for line in layers] == [LAYER.intensity] * 2
    assert [line.get_ydata()[0] for line in layers] == [LAYER.flops / 1e-3, LAYER.flops * 2 / 4e-3]
    (on_roof,) = plot.roofline([LAYER], MACHINE).lines[1:]
    assert on_roof.get_ydata()[0] == pytest.approx(MACHINE.flops_per_second)


def test_an_algorithm_map_shows_the_planners_choice():
    ax = plot.algorithm_map((1, 64), (14, 28), kernel=5, backend="numpy")
    plans = [nc.plan((1, c, n, n), (c, c, 5, 5), 1, 2, backend="numpy") for n in (14, 28) for c in (1, 64)]
    assert [text.get_text() for text in ax.texts] == [plan.algorithm for plan in plans]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 3)])
def test_a_receptive_field_is_that_of_the_formula(kernel, stride, dilation):
    layer = nn.Conv2d(1, 2, kernel, stride=stride, dilation=dilation, rng=0)
    box = plot.receptive_field_box(layer, (1, 24, 24), (3, 4))
    reach = dilation * (kernel - 1) + 1
    assert box == (3 * stride, 3 * stride + reach, 4 * stride, 4 * stride + reach)


def test_a_receptive_field_leaves_gradients_as_they_were():
    NETWORK.zero_grad()
    plot.receptive_field_box(NETWORK, (3, 24, 32), (0, 0))
    assert all(p.grad is None or not p.grad.any() for p in NETWORK.parameters())


def test_covering_what_a_score_sees_lowers_it():
    image = np.zeros((1, 16, 16))
    image[0, 9, 5] = 1
    drop = plot.occlusion_map(lambda x: x.max(axis=(1, 2, 3)), image, patch=(4, 2), stride=4, fill=0)
    assert drop.shape == (4, 4)
    assert np.argwhere(drop).tolist() == [[2, 1]]


def test_a_drop_is_drawn_where_the_patch_was_and_a_rise_not_at_all():
    image = np.zeros((1, 32, 32))
    image[0, 10:14, 20:24] = 1
    for sign, most in ((1, 1), (-1, 0)):
        ax = plot.occlusion(lambda x, sign=sign: sign * x.max(axis=(1, 2, 3)), image, patch=8, stride=4, fill=0)
        drawn = ax.images[1]
        left, right, bottom, top = drawn.get_extent()
        rows, columns = drawn.get_array().shape
        strength = np.broadcast_to(drawn.get_alpha(), (rows, columns))
        assert strength.max() == pytest.approx(0.6 * most)
        if sign > 0:  # the two pixels are covered by patches whose centre is near
            row, column = np.argwhere(strength == strength.max()).mean(axis=0)
            at = top + (row + 0.5) * (bottom - top) / rows, left + (column + 0.5) * (right - left) / columns
            assert at == pytest.approx((11.5, 21.5))
        assert ax.get_xlim() == (-0.5, 31.5)


@pytest.mark.parametrize(
    ("draw", "error", "words"),
    [
        (lambda: plot.feature_maps(np.ones((2, 3, 4, 5))), ValueError, "maps must be those of one image"),
        (lambda: plot.feature_maps(np.ones(3)), ValueError, "maps must have 3 or 4"),
        (lambda: plot.feature_maps(np.ones((0, 3, 4))), ValueError, "elements"),
        (lambda: plot.feature_maps(np.ones((1, 3, 4), complex)), TypeError, "real numbers"),
        (lambda: plot.kernels(np.ones((3, 3))), ValueError, "weights"),
        (lambda: plot.heat(np.ones((2, 4, 4)), np.ones((2, 2))), ValueError, "1 or 3 channels"),
        (lambda: plot.heat(IMAGE, np.ones((2, 2)), opacity=2), ValueError, "opacity"),
        (lambda: plot.training_curves({}), ValueError, "at least one"),
        (lambda: plot.training_curves({"loss": "abc"}), TypeError, "loss"),
        (lambda: plot.training_curves(nn.History()), ValueError, "training"),
        (lambda: plot.confusion_matrix([[1, 2, 3]]), ValueError, "square"),
        (lambda: plot.confusion_matrix([[1]], ["a", "b"]), ValueError, "labels"),
        (lambda: plot.roofline([LAYER], nc.machine.LECTURE[0]), ValueError, "bandwidth"),
        (lambda: plot.roofline([LAYER], MACHINE, seconds=[]), ValueError, "seconds"),
        (lambda: plot.roofline([3]), TypeError, r"costs\[0\] must be a Cost, got 3"),
        (lambda: plot.roofline([LAYER], "h100"), TypeError, "got 'h100'"),
        (lambda: plot.algorithm_map((), (7,)), ValueError, "channels must not be empty"),
        (lambda: plot.receptive_field(NETWORK, IMAGE, (99, 0)), ValueError, "position"),
        (lambda: plot.occlusion_map(len, IMAGE, patch=99), ValueError, "patch"),
        (lambda: plot.occlusion_map(len, IMAGE, stride=0), ValueError, "stride"),
        (lambda: plot.occlusion_map(len, IMAGE, patch=1.5), TypeError, "patch"),
    ],
)
def test_bad_input_is_named_before_anything_is_drawn(draw, error, words):
    with pytest.raises(error, match=words):
        draw()
    assert not plt.get_fignums()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for module in ("matplotlib", "matplotlib.colors", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, module, None)
    for draw in (
        lambda: plot.training_curves({"loss": [1, 2]}),
        lambda: plot.roofline([LAYER], MACHINE),
        lambda: plot.algorithm_map((1,), (7,), backend="numpy"),
    ):
        with pytest.raises(ImportError, match=r"pip install 'npconv\[plot\]'"):
            draw()


def test_the_palette_is_seen_on_white_and_on_black():
    for color in COLORS:
        red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        assert 0.15 < 0.299 * red + 0.587 * green + 0.114 * blue < 0.75


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for each in DRAWN:
        plt.imsave(PICTURES / f"{each.replace(' ', '_')}.png", both(each))
        plt.close("all")
