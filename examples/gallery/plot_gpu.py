"""
Move to a GPU
=============

The same calls run on CuPy arrays: what comes in decides where it is computed and what goes out. This page runs with or
without a GPU; what it printed here says which it had. Needs the extra ``cuda13`` or ``cuda12``; what is proven about
the kernels, and what is not, is on :doc:`the page about GPUs </gpu>`.
"""

# %%
# One line decides. Everything after it is written once, against ``xp``.
import matplotlib.pyplot as plt
import numpy as np

import npconv as nc
from npconv import nn

if "cupy" in nc.available_backends():
    import cupy as xp

    here = "cupy"
else:
    xp, here = np, "numpy"
print(f"arrays of {xp.__name__}; backends that can run here: {', '.join(nc.available_backends())}")

# %%
# A convolution and its gradients. Arrays stay where they are; nothing is copied behind one's back, and mixing arrays
# of both kinds is an error that says which is which.
rng = np.random.default_rng(0)
x = xp.asarray(rng.standard_normal((8, 16, 64, 64), np.float32))
w = xp.asarray(rng.standard_normal((32, 16, 3, 3), np.float32))
y, pullback = nc.conv_vjp(x, w, padding=1)
dx, dw, _ = pullback(y)
assert {type(array) for array in (y, dx, dw)} == {type(x)}

# %%
# A program that has NumPy arrays and wants the GPU for one heavy call need not change at all: with the backend named,
# arrays go there and come back. Without a GPU that is an error that says what is missing, never a silent detour.
try:
    nc.conv2d(rng.standard_normal((1, 16, 64, 64)), rng.standard_normal((32, 16, 3, 3)), backend="cupy")
    print("computed on the GPU, returned as NumPy's")
except ImportError as error:
    print(error)

# %%
# A network moves with ``to``; then it takes arrays of that kind, in training as well. One seed gives the same initial
# weights, the same order of samples and the same dropout on every device.
network = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1, rng=0), nn.ReLU(), nn.GlobalAvgPool(), nn.Flatten(), nn.Linear(8, 2, rng=1)
)
network.to(here)
images = rng.normal(0, 1, (64, 1, 16, 16)).astype(np.float32)
labels = (rng.random(64) < 0.5).astype(np.int64)
images[labels == 1] *= 2  # brighter noise is the second class
history = nn.fit(
    network,
    (images, labels),
    optimizer=nn.Adam(network.parameters(), lr=0.03),
    epochs=30,
    batch_size=32,
    progress=False,
)
nc.plot.training_curves(history)
plt.show()

# %%
# Weights in a file are the same wherever they were trained, so a network trained on a GPU is used on a laptop:
# ``network.to("numpy")``, or ``nn.load`` there. What a job would take on other machines, before renting one:
layer = nc.cost.conv((1, 64, 56, 56), (64, 64, 3, 3), padding=1).training()
machines = (nc.this_machine(), nc.machine.NAMED["h100"])
print(nc.cost.table([nc.cost.Row(nc.cost.job(layer, 10, 1e6), machines)]))

# %%
# CuPy returns before the GPU is done. To time something, wait for it: ``xp.cuda.Stream.null.synchronize()`` before and
# after. And ``with nc.strict():`` keeps to sums of products where results of two machines are compared.
