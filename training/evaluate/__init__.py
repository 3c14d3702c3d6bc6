"""Evaluation of the system as served, and the card that states what was found."""
