"""Penalties that ride on adversarial training, each a module of its own with closed-form tests."""
