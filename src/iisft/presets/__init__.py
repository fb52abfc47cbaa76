"""Presets: the typed recipe, where its files are found, how they are read, checked
and explained.
"""
