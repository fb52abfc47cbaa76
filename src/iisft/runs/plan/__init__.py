"""From a request to a whole plan, and from a plan to a run folder."""
