"""Scripts and modules that run in the training interpreter. The command line never imports them: it passes their paths."""
