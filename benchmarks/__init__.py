"""Runnable comparisons; each writes what it measured, with the device and the date, to `benchmarks/results/`."""

import gateway as gateway  # switches the telemetry of ONNX Runtime off before it is imported
