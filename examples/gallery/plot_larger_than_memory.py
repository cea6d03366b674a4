"""
Convolve an array that is larger than memory
============================================

A scan lies in a file and is too large to load. ``npconv.dask`` convolves it block by block: each block is read with
exactly the halo that its results depend on, and written before the next one comes. Needs the extra ``dask``.
"""

# %%
# The file: here a small one, made a strip at a time as a microscope would. Nothing below would change if it had a
# terabyte.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import npconv as nc

folder = Path(tempfile.mkdtemp())
scan = np.lib.format.open_memmap(folder / "scan.npy", mode="w+", dtype=np.float32, shape=(1536, 2048))
rng = np.random.default_rng(0)
for start in range(0, 1536, 256):
    rows, columns = np.mgrid[start : start + 256, 0:2048].astype(np.float32)
    cells = np.sin(rows / 40) * np.sin(columns / 55 + np.sin(rows / 90)) > 0.6
    scan[start : start + 256] = cells + rng.normal(0, 0.7, cells.shape).astype(np.float32)
scan.flush()

# %%
# ``as_dask`` reads nothing: it remembers the file's name and how it is cut. What follows is a recipe, too.
x = nc.dask.as_dask(np.load(folder / "scan.npy", mmap_mode="r"), chunks=(512, 512))
smooth = nc.dask.correlate(x, nc.filters.gaussian(6.0, ndim=2))
small = nc.dask.avg_pool(smooth[None, None], (4, 4))[0, 0]
x

# %%
# Now it is computed, a few blocks at a time, and written to another file. ``dask.array.store`` takes anything that can
# be assigned to: a memory map, a Zarr array, an HDF5 data set.
import dask.array

result = np.lib.format.open_memmap(folder / "small.npy", mode="w+", dtype=np.float32, shape=small.shape)
dask.array.store(small, result, lock=False)

_, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
left.imshow(scan[::8, ::8], cmap="gray")
left.set_title("as it was scanned")
right.imshow(result, cmap="gray")
right.set_title("smoothed, a quarter of the size")
plt.show()

# %%
# Block by block gives what one call gives; this array is small enough to see it. For sums of integers the two are
# equal, for floating-point numbers they agree to rounding.
whole = nc.correlate(np.asarray(scan), nc.filters.gaussian(6.0, ndim=2))
print(f"largest difference: {np.abs(whole - smooth.compute()).max():.1e}")

# %%
# On a cluster nothing changes but where it runs: ``dask.distributed.Client(...)`` before, and each worker maps the file
# itself. How little memory that takes, and how it scales, is on :doc:`the page about dask </dask>`.
