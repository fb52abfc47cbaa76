"""Runs that wait for their GPUs: the waiting line as files, and the process that starts them."""
