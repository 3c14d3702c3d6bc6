"""What moves inside a network under attack: layers and neurons."""
