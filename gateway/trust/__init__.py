"""Which bundles may be served: those that someone trusted has signed, and whose robustness card holds."""
