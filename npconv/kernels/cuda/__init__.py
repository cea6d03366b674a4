"""The room of the CUDA kernels, empty for now: real ``.cu`` files, how they are compiled, how they are launched.

It plugs in where `npconv.arrays.require` makes the cupy backend: `Backend.kernels` becomes this module in place of
None, and must then offer what `npconv.kernels.cpu` offers to algorithms: ``uses_tiles``, ``multiplies_on_tiles``,
``conv_forward``, ``runner``, ``conv_input_grad``, ``conv_weight_grad``, ``winograd_weights``, ``winograd_runner``,
``largest``, ``matmul``, ``unfold``, ``fold``, ``max_pool`` and ``max_pool_grad``. Until then the portable forms run on
CuPy arrays through `xp`.
"""
