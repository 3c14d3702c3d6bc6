"""Palisade's offline half: harden a classifier, calibrate its defence, attack it and export it as a bundle."""

import gateway as gateway  # switches the telemetry of ONNX Runtime off before it is imported
