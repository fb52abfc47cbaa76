"""Model folders: what is in them, and the view that a run loads."""
