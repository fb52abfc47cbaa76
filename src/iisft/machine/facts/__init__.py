"""What the machine is: read from files below a root, and from what only the running one
can answer.
"""
