"""How long rows are for a model, and what a limit would damage."""
