"""What a run will need before it starts: memory per GPU by part, time, disk.

And what would make it fit.
"""
