"""
Train on your own pictures
==========================

A folder with a folder of pictures for each class is all that it takes. The command line trains a network on them and
uses it; the same in Python is on :doc:`the page about networks </networks>`. Needs the extra ``train``.
"""

# %%
# The pictures: yours, in ``fruit/apple/1.jpg``, ``fruit/banana/1.jpg`` and so on, of any size. Here they are drawn.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

import npconv.cli

work = Path(tempfile.mkdtemp())
rng = np.random.default_rng(0)
colours = {"apple": (190, 40, 40), "banana": (210, 190, 40), "lime": (90, 170, 50)}
for name, colour in colours.items():
    (work / "fruit" / name).mkdir(parents=True)
    for number in range(40):
        picture = Image.fromarray(rng.integers(40, 200, (48, 48, 3), np.uint8))
        pen = ImageDraw.Draw(picture)
        shade = tuple(int(part * rng.uniform(0.6, 1.2)) for part in colour)
        x, y = (int(place) for place in rng.integers(4, 20, 2))
        if name == "banana":
            pen.arc((x, y, x + 24, y + 24), 20, 170, fill=shade, width=7)
        else:
            pen.ellipse((x, y, x + 24, y + 22), fill=shade)
        picture.save(work / "fruit" / name / f"{number}.png")

_, axes = plt.subplots(1, 6, figsize=(10, 2), layout="constrained")
for ax, path in zip(axes, sorted(work.glob("fruit/*/[01].png")), strict=True):
    ax.imshow(Image.open(path))
    ax.set_title(path.parent.name)
    ax.set_axis_off()
plt.show()


# %%
# In a terminal the next line is ``npconv train --model lenet --data fruit --epochs 10``. A fifth of the pictures is
# held back, to see what the network makes of pictures that it has not trained on. Stop it with Ctrl-C and type the same
# again: it goes on where it stood.
def terminal(line):
    assert npconv.cli.main(line.replace("fruit", f"{work}/fruit").replace("trained", f"{work}/trained").split()) == 0


terminal("train --model lenet --data fruit --epochs 10 --output trained")

# %%
# It leaves the weights, how the training went, and what was taken for what.
_, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for ax, name in zip(axes, ("curve.png", "confusion.png"), strict=True):
    ax.imshow(Image.open(work / "trained" / name))
    ax.set_axis_off()
plt.show()

# %%
# The file of weights knows the network, the size of its pictures and the names of the classes, so a new picture needs
# nothing else.
terminal("predict trained/weights.safetensors fruit/apple/0.png fruit/banana/0.png --top 2")
