"""Measurements: one table of layers, and programs that time them. Run them as modules: ``python -m benchmarks.forms``."""
