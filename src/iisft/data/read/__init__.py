"""Rows of data files, read as a stream."""
