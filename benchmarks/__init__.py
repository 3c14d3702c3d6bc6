"""Runnable comparisons; each writes what it measured, with the device and the date, to `benchmarks/results/`."""

import training as training  # no telemetry, threads that wait for a short time: before ONNX Runtime and torch
