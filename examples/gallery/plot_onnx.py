"""
Run an ONNX model
=================

A network that somebody trained elsewhere comes as an ONNX file. npconv reads it, fuses what can be fused, and runs it
on NumPy arrays. Needs the extra ``onnx``.
"""

# %%
# First there has to be a file. Here npconv's own trained MobileNet is written as one, a node for each layer; from
# PyTorch it would be ``torch.onnx.export(network, images, "digits.onnx")``.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits

import npconv as nc
from npconv import nn

examples = next(p / "examples" for p in (Path.cwd(), *Path.cwd().parents) if (p / "examples").is_dir())
mobilenet = nc.models.mobilenet_v1(10, channels=1, size=32, width=0.25)
nn.load(mobilenet, examples / "mobilenet-digits.safetensors")
mobilenet.eval()

nodes, weights, last = [], [], "images"


def add(operator, *arrays, **attributes):
    """A node that reads the last one's result, and arrays."""
    global last
    names = [f"{operator}{len(nodes)}_{number}" for number in range(len(arrays))]
    weights.extend(numpy_helper.from_array(array, name) for array, name in zip(arrays, names, strict=True))
    nodes.append(helper.make_node(operator, [last, *names], [f"value{len(nodes)}"], **attributes))
    last = f"value{len(nodes) - 1}"


for _, layer in mobilenet.named_modules():
    if isinstance(layer, nn.Conv):
        how = {"strides": layer.stride, "pads": [layer.padding] * 4, "group": layer.groups}
        add("Conv", layer.weight.value, **how)
    elif isinstance(layer, nn.BatchNorm):
        state = layer.state_dict()
        add("BatchNormalization", *(state[name] for name in ("weight", "bias", "running_mean", "running_var")))
    elif isinstance(layer, nn.ReLU):
        add("Relu")
    elif isinstance(layer, nn.GlobalAvgPool):
        add("GlobalAveragePool")
        add("Flatten")
    elif isinstance(layer, nn.Linear):
        add("Gemm", layer.weight.value, layer.bias.value, transB=1)

graph = helper.make_graph(
    nodes,
    "digits",
    [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 32, 32])],
    [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", 10])],
    weights,
)
file = Path(tempfile.mkdtemp()) / "digits.onnx"
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
print(f"{len(nodes)} nodes, {file.stat().st_size:,} bytes")

# %%
# Reading it is one line, running it another. Of the nodes a third are left: batch normalisation and rectifiers have
# moved into the convolutions.
model = nc.onnx.load(file)
print(model.inputs, model.outputs, f"{len(model.graph.nodes)} nodes")

digits = load_digits()
scans = [np.rint(image * (255 / 16)).astype(np.uint8) for image in digits.images[:20]]
images = np.stack([[Image.fromarray(scan).resize((32, 32), Image.Resampling.BILINEAR)] for scan in scans])
images = images.astype(np.float32) / 255
logits = model(images)
print("says ", *logits.argmax(axis=1))
print("truth", *digits.target[:20])

# %%
# The numbers are the network's own, up to rounding.
assert np.allclose(logits, mobilenet(images), atol=1e-4)

# %%
# What it costs, before anything is bought: the five largest of its steps, and all of them. ``npconv cost digits.onnx``
# prints the same, with the time on each machine.
steps = nc.cost.model(model, images.shape)
print(nc.cost.table([*sorted(steps, key=lambda step: -step.macs)[:5], nc.cost.stack(steps, "all steps")]))

# %%
# On the command line: ``npconv run digits.onnx picture.png``. And what does the answer depend on? Cover a part of the
# picture, and see how much less sure the model is.
nc.plot.occlusion(lambda x: model(x)[:, 3], images[3], patch=6, stride=2, fill=0)
plt.show()
