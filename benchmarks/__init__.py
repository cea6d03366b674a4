"""Measurements: one table of layers, and programs that time them. Run them as ``python -m benchmarks.forms``."""
