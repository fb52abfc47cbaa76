"""The rules of a preset, by what they are about.

Errors are only for what can't run or gives NaN; what merely costs time is a warning with its
measured price. The doctor asks them again when it knows the machine. Every function marked with
@rule in these modules is one.
"""
