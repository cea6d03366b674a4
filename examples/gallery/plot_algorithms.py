"""
Which algorithm wins, and how near the roof
===========================================

The planner's choice over the number of channels and the size of the image, and some layers under the roof of the
machine that made this page.
"""

# %%
import time

import matplotlib.pyplot as plt
import numpy as np

import npconv as nc

nc.plot.algorithm_map()
plt.show()

# %%
# A plan says what it would run, and why the others lost.
print(nc.plan((1, 64, 56, 56), (64, 64, 3, 3), padding=1))

# %%
# Measured, against the roofs: below the ridge the memory limits, above it the arithmetic. Winograd needs fewer
# operations than are counted here, so it may lie above its roof.
shapes = {
    "3x3, 64 to 64": ((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "1x1, 256 to 256": ((1, 256, 28, 28), (256, 256, 1, 1), {}),
    "depthwise 3x3, 256": ((1, 256, 28, 28), (256, 1, 3, 3), {"padding": 1, "groups": 256}),
}
rng = np.random.default_rng(0)
costs, seconds = [], []
for name, (x_shape, w_shape, options) in shapes.items():
    x, w = rng.standard_normal(x_shape, np.float32), rng.standard_normal(w_shape, np.float32)
    nc.conv(x, w, **options)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        nc.conv(x, w, **options)
        times.append(time.perf_counter() - start)
    costs.append(nc.cost.conv(x_shape, w_shape, **options, name=name))
    seconds.append(float(np.median(times)))
nc.plot.roofline(costs, nc.this_machine(), seconds=seconds)
plt.show()
