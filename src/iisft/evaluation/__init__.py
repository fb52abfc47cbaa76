"""What predictions are worth: figures beside trivial baselines, and paired comparisons."""
