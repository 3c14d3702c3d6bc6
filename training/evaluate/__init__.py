"""Evaluation of the system as served, and the card that says what was found."""
