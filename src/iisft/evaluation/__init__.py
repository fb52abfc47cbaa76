"""What predictions are worth: figures beside trivial baselines, intervals, and
paired comparisons.
"""
