"""The lecture on channels in one page: several channels in and out, 1x1 as a matrix product, a kernel that is learned.

Run it: ``python examples/lecture.py``
"""

from __future__ import annotations

import numpy as np

import npconv as nc
from npconv import d2l, nn

X = np.stack([np.arange(9).reshape(3, 3), np.arange(1, 10).reshape(3, 3)])
K = np.array([[[0, 1], [2, 3]], [[1, 2], [3, 4]]])
print("Two input channels, one kernel each, summed:\n", d2l.corr2d_multi_in(X, K), sep="")

bank = np.stack([K, K + 1, K + 2])
print("\nThree output channels:\n", d2l.corr2d_multi_in_out(X, bank), sep="")

rng = np.random.default_rng(0)
image, mix = rng.normal(size=(3, 3, 3)), rng.normal(size=(2, 3, 1, 1))
difference = np.abs(d2l.corr2d_multi_in_out_1x1(image, mix) - nc.conv2d(image, mix)).max()
print(f"\n1x1 convolution as a matrix product: largest difference {difference:.1e}")

layer = nn.Conv2d(1, 1, (3, 5), padding=(0, 1), stride=(3, 4), rng=0)
print("\n8x8 through kernel 3x5, padding 0, 1, stride 3, 4:", d2l.comp_conv2d(layer, np.ones((8, 8), np.float32)).shape)

bar = np.ones((6, 8))
bar[:, 2:6] = 0
edges = d2l.corr2d(bar, np.array([[1.0, -1.0]]))
kernel, losses = d2l.learn_kernel(bar, edges, (1, 2), rng=0)
print(f"\nAn edge detector learned from one image: {kernel.round(4)}, loss {losses[0]:.3g} -> {losses[-1]:.1g}")

print("\nWhat a layer costs:")
print(nc.cost.table(nc.cost.lecture()))
