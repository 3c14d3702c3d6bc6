"""Runnable comparisons; each writes what it measured, with the device and the date, to `benchmarks/results/`."""
