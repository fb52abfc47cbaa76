"""Runs in the training interpreter.

The command line never imports these modules: it passes their paths.
"""
