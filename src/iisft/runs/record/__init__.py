"""The run folder: what a run leaves in files, and what they tell about it."""
