"""Analyses of layers and neurons under attack."""
