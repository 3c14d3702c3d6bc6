"""Bundles from elsewhere: object stores and registries of containers, checked before they are served."""
