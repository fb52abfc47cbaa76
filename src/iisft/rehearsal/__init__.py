"""A short run that tells whether a long one will hold: planned, run and killed once, judged."""
