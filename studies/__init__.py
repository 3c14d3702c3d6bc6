"""Studies of the defence: each prints or writes what it measured, for docs/methods.md."""

import gateway as gateway  # switches the telemetry of ONNX Runtime off before it is imported
