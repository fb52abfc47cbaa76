"""Runs: the folder, the launch, the supervisor, and the state derived from files and live
processes.
"""
