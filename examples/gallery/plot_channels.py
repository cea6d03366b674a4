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
# It is no saving of the same size in time: the depthwise part does so little with each byte that the memory limits it.
# Under the roof of this machine it lies on the slope.
ax = nc.plot.roofline([pair.dense, pair.depthwise, pair.pointwise])
plt.show()

# %%
# Halve the image, double the channels
# ------------------------------------
#
# Why do networks do both at once? Because the work stays the same.
print(nc.cost.table(nc.cost.variations((1, 64, 56, 56), (64, 64, 3, 3))))
