"""
Train a network, and look into it
=================================

A small LeNet learns scikit-learn's handwritten digits in a few seconds. Then: how it went, what it mistakes, what its
first layer learned, what one of its outputs sees, and what its answer depends on.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import npconv as nc
from npconv import demo, nn

digits = load_digits()
rng = np.random.default_rng(0)
order = rng.permutation(len(digits.images))
images, labels = digits.images[order, None].astype(np.float32) / 16, digits.target[order]
held_back = slice(0, 360)

model = demo.lenet(seed=0)
optimiser = nn.Adam(model.parameters(), lr=8e-3)
history = nn.fit(
    model,
    (images[360:], labels[360:]),
    optimizer=optimiser,
    epochs=8,
    batch_size=32,
    schedule=nn.CosineAnnealingLR(optimiser, T_max=8),
    validation=(images[held_back], labels[held_back]),
    progress=False,
)
nc.plot.training_curves(history, log=True)
plt.show()

# %%
# What was taken for what, on digits that it has not seen.
guesses = nn.predict(model, images[held_back]).argmax(axis=1)
matrix = np.zeros((10, 10), int)
np.add.at(matrix, (labels[held_back], guesses), 1)
nc.plot.confusion_matrix(matrix)
plt.show()

# %%
# The kernels of the first layer, zero in the middle of the colours.
nc.plot.kernels(next(model.parameters()).value)
plt.show()

# %%
# What a pixel of the second convolution's result sees, and where covering the image lowers the right answer's score.
_, (left, right) = plt.subplots(1, 2, layout="constrained")
nc.plot.receptive_field(model[:5], images[0], (1, 2), ax=left)
nc.plot.occlusion(lambda x: model(x)[:, labels[0]], images[0], patch=2, stride=1, fill=0, ax=right)
plt.show()

# %%
# What each layer costs, for one image.
print(nc.cost.table(nc.cost.model(model, (1, 1, 8, 8))))
# sphinx_gallery_thumbnail_number = 4
