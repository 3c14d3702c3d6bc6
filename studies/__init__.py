"""Studies of the defence: each prints or writes what it measured, for docs/methods.md."""

import training as training  # no telemetry, threads that wait for a short time: before ONNX Runtime and torch
