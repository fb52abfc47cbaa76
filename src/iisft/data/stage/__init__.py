"""Checked copies under data/, fitted to a limit."""
