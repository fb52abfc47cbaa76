"""What a run loads in place of the model folder."""
