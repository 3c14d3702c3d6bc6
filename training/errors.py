"""Errors of the offline half; the command line prints them as one line and exits with 2."""

from __future__ import annotations


class TrainingError(Exception):
    """Root: a cause that the user can act on, in one sentence."""


class DataError(TrainingError):
    """Data that is missing, malformed or too small for what was asked."""


class RecipeError(TrainingError):
    """A recipe that does not validate."""


class ExportError(TrainingError):
    """A network, or its input gradient, that cannot be expressed in ONNX."""


class PreprocessingError(TrainingError):
    """A statement about a model's input that is malformed, or that cannot be followed here."""
