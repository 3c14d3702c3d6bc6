"""Penalties added to adversarial training, each a module of its own with closed-form tests."""
