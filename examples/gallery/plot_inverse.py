"""
Gradients in an inverse problem
===============================

A photograph was blurred by a known kernel and has noise. Gradient descent finds an image that, blurred, gives what was
seen: the gradient is the adjoint of the blur, ``conv_vjp``'s pullback.
"""

# %%
import matplotlib.pyplot as plt
import numpy as np

import npconv as nc
from npconv.demo import load_image

truth = load_image(None)[:, 120:248, 220:380]
kernel = nc.filters.gaussian(2, ndim=2).astype(np.float32)
weights = np.repeat(kernel[None, None], 3, axis=0)  # each colour by itself
blur = {"padding": "same", "padding_mode": "reflect", "groups": 3}

rng = np.random.default_rng(0)
seen = nc.conv2d(truth, weights, **blur) + rng.normal(0, 0.01, truth.shape).astype(np.float32)

# %%
# Half the squared difference; its gradient in the image is the pullback of the difference.
estimate, momentum = seen.copy(), np.zeros_like(seen)
history = []
for _ in range(40):
    blurred, pullback = nc.conv_vjp(estimate, weights, **blur)
    difference = blurred - seen
    history.append(float(np.square(difference).mean()))
    momentum = 0.9 * momentum - 0.5 * pullback(difference)[0]
    estimate = estimate + momentum

nc.plot.training_curves({"mean squared difference": history}, log=True).set_xlabel("step")
plt.show()

# %%
_, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for ax, (title, picture) in zip(axes, {"seen": seen, "found": estimate, "truth": truth}.items(), strict=True):
    ax.imshow(picture.transpose(1, 2, 0).clip(0, 1))
    ax.set_title(title)
    ax.set_axis_off()
plt.show()
print(f"mean squared error {np.square(seen - truth).mean():.5f} before, {np.square(estimate - truth).mean():.5f} after")
# sphinx_gallery_thumbnail_number = 2
