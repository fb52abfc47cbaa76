"""What must never reach a file or a log: tokens, keys, passwords."""

import re
from collections.abc import Mapping

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(?:TOKEN|SECRET|PASS(?:WORD|WD)?|PWD|CREDENTIALS?|KEY)\d*$", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def is_secret(name: str) -> bool:
    """Whether a variable or argument of this name holds a token, key or password."""
    return _SECRET_NAME.search(name) is not None


def redact(env: Mapping[str, str]) -> dict[str, str]:
    """What may be written down: values of secret names, and passwords in URLs, are hidden."""
    return {
        name: HIDDEN if value and is_secret(name) else _URL_PASSWORD.sub(HIDDEN, value)
        for name, value in env.items()
    }
