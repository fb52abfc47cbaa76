"""What a finished run is used for: predictions, talk, an API, merged weights.

All of it from the run folder.
"""
