"""How the properties are tried: the same examples each time where CI is set, new ones elsewhere."""

import os

from hypothesis import HealthCheck, settings

tried = settings(
    max_examples=100,
    deadline=None,  # a loaded machine is no fault
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
