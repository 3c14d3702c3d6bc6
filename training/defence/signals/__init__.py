"""What scores are made of: margins, reference views and the deviation of neurons between them."""
