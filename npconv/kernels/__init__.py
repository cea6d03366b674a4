"""The hot loops, below every policy: no validation, no choice, no allocation of results."""
