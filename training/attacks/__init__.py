"""Attacks: each returns perturbed images inside its budget and inside [0, 1]."""
