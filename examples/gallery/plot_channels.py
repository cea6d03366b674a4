"""
The lecture on channels, cell by cell
=====================================

Several input channels, several output channels, 1×1 convolutions, what a layer costs, and why MobileNet splits it: the
lecture that goes with *Dive into Deep Learning*, "Multiple Input and Multiple Output Channels", with npconv in place
of a framework. ``examples/channels.ipynb`` is the same as a notebook.
"""

# %%
# Several input channels
# ----------------------
#
# An image has colours, so a kernel needs as many channels as the image has. Each channel is correlated with its own
# slice of the kernel, and the results are added up. ``corr2d`` is the correlation of one channel; the function below is
# the textbook's.
import matplotlib.pyplot as plt
import numpy as np

import npconv as nc
from npconv import d2l


def corr2d_multi_in(X, K):
    return sum(d2l.corr2d(x, k) for x, k in zip(X, K, strict=True))


X = np.array([[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]])
K = np.array([[[0.0, 1.0], [2.0, 3.0]], [[1.0, 2.0], [3.0, 4.0]]])
corr2d_multi_in(X, K)

# %%
# In npconv this is one call: the kernel bank has one output channel.
nc.conv2d(X, K[None])

# %%
# Several output channels
# -----------------------
#
# A layer that looks for several things needs several such kernels. Their results are stacked: one output channel each,
# so the weights have the shape ``(outputs, inputs, height, width)``.


def corr2d_multi_in_out(X, K):
    return np.stack([corr2d_multi_in(X, k) for k in K])


K = np.stack((K, K + 1, K + 2))
K.shape

# %%
corr2d_multi_in_out(X, K)

# %%
# Again one call, and equal.
assert (nc.conv2d(X, K) == corr2d_multi_in_out(X, K)).all()
nc.conv2d(X, K).shape

# %%
# 1×1 convolutions
# ----------------
#
# A kernel of one pixel sees no neighbours. What is left is a mixture of channels, the same at every pixel: a dense
# layer over channels, and so a matrix product.


def corr2d_multi_in_out_1x1(X, K):
    c_i, h, w = X.shape
    c_o = K.shape[0]
    return (K.reshape((c_o, c_i)) @ X.reshape((c_i, h * w))).reshape((c_o, h, w))


rng = np.random.default_rng(0)
X = rng.normal(0, 1, (3, 3, 3))
K = rng.normal(0, 1, (2, 3, 1, 1))
Y1, Y2 = corr2d_multi_in_out_1x1(X, K), corr2d_multi_in_out(X, K)
assert float(np.abs(Y1 - Y2).sum()) < 1e-12
assert float(np.abs(nc.conv2d(X, K) - Y1).sum()) < 1e-12

# %%
# npconv knows that, too: the plan of such a layer says *pointwise*, and why the others lost.
print(nc.plan((1, 256, 28, 28), (256, 256, 1, 1)))

# %%
# What a layer costs
# ------------------
#
# The lecture's layer: 100 channels in and out, a 5×5 kernel, 64×64 outputs. Every output of every channel takes 100·25
# multiplications, each with an addition.
layer = nc.cost.conv((1, 100, 64, 64), (100, 100, 5, 5), padding="same")
print(layer)

# %%
# Ten such layers on a million images, at the lecture's 0.15 and 12 T/s, and on the machine that made this page. The
# lecture counts a multiplication with its addition as one; a data sheet would count two.
print(nc.cost.table(nc.cost.lecture(nc.this_machine())))

# %%
# And backward? The gradient of the input and that of the weights are each a convolution as large as the first, so a
# training step costs three times as much.
print(layer.training())

# %%
# MobileNet: split it
# -------------------
#
# A dense layer mixes space and channels at once. MobileNet does one after the other: a *depthwise* convolution, one
# kernel for each channel, then a 1×1 convolution. Of the work, 1/outputs + 1/taps is left.
pair = nc.cost.separable(100, 100, 5, (64, 64))
print(nc.cost.table([pair.dense, pair.depthwise, pair.pointwise, pair.pair]))
print(f"{pair.ratio:.1%} of the work, and 1/100 + 1/25 is {1 / 100 + 1 / 25:.1%}")

# %%
# It is no saving of the same size in time: with each byte the depthwise part does 77 times less than the dense layer,
# so it lies on the slope of this machine's roof, or close to it, where the memory limits.
ax = nc.plot.roofline([pair.dense, pair.depthwise, pair.pointwise])
plt.show()

# %%
# Halve the image, double the channels
# ------------------------------------
#
# Why do networks do both at once? Because the work stays the same.
print(nc.cost.table(nc.cost.variations((1, 64, 56, 56), (64, 64, 3, 3))))

# %%
# A trained MobileNet
# -------------------
#
# Thirteen such pairs after one dense layer are MobileNet. This one has a quarter of the paper's channels, and has
# learned handwritten digits; its weights were written by
# ``npconv train --model mobilenet --width 0.25 --data digits --epochs 10``.
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from npconv import nn

examples = next(p / "examples" for p in (Path.cwd(), *Path.cwd().parents) if (p / "examples").is_dir())
mobilenet = nc.models.mobilenet_v1(10, channels=1, size=32, width=0.25)
nn.load(mobilenet, examples / "mobilenet-digits.safetensors")

digits = load_digits()
scans = np.rint(digits.images * (255 / 16)).astype(np.uint8)
images = np.stack([[Image.fromarray(scan).resize((32, 32), Image.Resampling.BILINEAR)] for scan in scans])
images = images.astype(np.float32) / 255
held_back = np.random.default_rng(0).permutation(len(images))[:359]  # a fifth that it has not seen
guesses = nn.predict(mobilenet, images[held_back]).argmax(axis=1)
print(
    f"{(guesses == digits.target[held_back]).mean():.2%} of {len(held_back)} digits that it has not seen are recognised"
)

# %%
# Where is its work? Most of it, and most of the weights, in 1×1 convolutions, which are matrix products. With the
# paper's four times as many channels they have 95 % of the work (its table 2). The depthwise layers, the ones that look
# at neighbours, cost next to nothing.
layers = dict(mobilenet.named_modules())


def kind(name):
    layer = layers[name.partition(":")[0]]
    if not isinstance(layer, nn.Conv):
        return "everything else"
    return "depthwise 3×3" if layer.groups > 1 else "{}×{}".format(*layer.kernel_size)


rows = nc.cost.model(mobilenet, (1, 1, 32, 32))
kinds = sorted({kind(row.name) for row in rows})
print(nc.cost.table([nc.cost.stack([row for row in rows if kind(row.name) == k], k) for k in kinds]))

# %%
# Were each pair one dense convolution, the network would have several times the work; with the paper's channels nine.
convolutions = [(row.input_shape[1:], layers[row.name]) for row in mobilenet.summary((1, 32, 32)) if row.macs]
pairs = [
    nc.cost.separable(deep.out_channels, point.out_channels, deep.kernel_size, size, deep.stride, deep.padding)
    for (size, deep), (_, point) in zip(convolutions[1:-1:2], convolutions[2:-1:2], strict=True)
]
dense, split = sum(pair.dense.macs for pair in pairs), sum(pair.pair.macs for pair in pairs)
print(f"{len(pairs)} pairs: dense {dense:,} MACs, split {split:,}, {dense / split:.1f} times less")

# %%
# What it has learned: the depthwise kernels of the first block, and what the first layers make of a digit.
_, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
nc.plot.kernels(convolutions[1][1].weight.value, ax=left)
nc.plot.feature_maps(images[held_back[0]], ax=middle)
nc.plot.feature_maps(mobilenet[0][:2].eval()(images[held_back[:1]]), shared=False, ax=right)
plt.show()
# sphinx_gallery_thumbnail_number = 2
