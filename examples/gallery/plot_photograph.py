"""
Filter a photograph
===================

Edges, a blur and a colour mix, each one convolution over the three colours of a picture.
"""

# %%
# The photograph comes with scikit-learn; ``npconv.demo.load_image(path)`` reads one of your own.
import matplotlib.pyplot as plt
import numpy as np

import npconv as nc
from npconv.demo import load_image

photograph = load_image(None)
photograph.shape

# %%
# Weights over colours: brightness is a mixture of red, green and blue, and Sobel's kernel is its slope. Three channels
# in, two out: one for each direction.
gray = np.array([0.299, 0.587, 0.114], np.float32)
sobel = nc.filters.sobel(1).astype(np.float32) / 4
slopes = nc.conv2d(
    photograph,
    np.stack([gray[:, None, None] * sobel, gray[:, None, None] * sobel.T]),
    padding="same",
    padding_mode="replicate",
)
nc.plot.feature_maps(slopes)
plt.show()

# %%
# Filters that leave the colours alone need no channels: ``correlate`` takes the axes to work on, and a Gaussian is
# split into a row and a column by itself.
soft = nc.correlate(photograph, nc.filters.gaussian(4, ndim=2).astype(np.float32), axes=(1, 2))
plt.imshow(soft.transpose(1, 2, 0).clip(0, 1))
plt.axis("off")
plt.show()

# %%
# Where is there most to see? The edges' strength, pooled and laid over the picture: the same shows where a layer of a
# network responds.
strength = np.hypot(*slopes)
nc.plot.heat(photograph, nc.avg_pool(strength[None], (16, 16))[0], opacity=0.9)
plt.show()
# sphinx_gallery_thumbnail_number = 3
