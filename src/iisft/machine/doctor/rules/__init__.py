"""The doctor's rules, by what they are about.

Every function marked with @rule in these modules is one.
"""
