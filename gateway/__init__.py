"""Palisade's online half: decode, defend, explain and flag images behind an endpoint. Never imports torch."""

__version__ = "0.1.0"
