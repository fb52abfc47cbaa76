"""The report: one self-contained HTML file of a run, its curves, its evaluation and its
predictions.
"""
