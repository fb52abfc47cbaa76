"""What is in a model folder."""
