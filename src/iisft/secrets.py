"""What must never reach a file or a log: tokens, keys, passwords.

Known by the name under which they are given, and then by their value wherever it turns up.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"""(?:
        TOKEN | _TOKENS | [A-Z]*SECRET\w* | PASS(?:WORD|WD|PHRASE|CODE)?S? | PWD | CREDENTIALS?
        | (?:^|_)(?:CREDS?|PATS?|AUTH|JWT|BEARER|COOKIES?) | AUTHORIZATION | KEYS? | KEYRING
        | ^IISFT_NOTIFY
    )\d*$""",
    re.IGNORECASE | re.VERBOSE,
)
# Words of text and of models: add_special_tokens, max_new_tokens, pad_token. A shell's own place.
_NO_SECRET = re.compile(
    r"(?:SPECIAL|NEW|MAX|MIN|NUM|INPUT|OUTPUT|EXTRA|ADD|ADDED|TOTAL|PAD|EOS|BOS|UNK|SEP|CLS|MASK)"
    r"_TOKENS?$|^(?:OLD)?PWD$",
    re.IGNORECASE,
)
_AFTER_SCHEME = re.compile(r"(?<=://)[^\s\"'<>\\]+")
_VARIABLE = re.compile(r"(?:\w*:)?\$(?:\w+|\{\w+\})")  # names the secret, and is none
_PARAMETER = re.compile(r"([?&#;])([\w.-]+)=([^&#;\s\"'<>]+)")
_BEARER = re.compile(r"(authorization:\s*\w+\s+|\bbearer\s+)(?=\S*\d)\S{8,}", re.IGNORECASE)
_CHUNK = 2**20
_SHORTEST = 6  # characters of a value that is looked for elsewhere: "1" and "true" stand anywhere


def is_secret(name: str) -> bool:
    """Whether a variable or argument of this name holds a token, key or password."""
    return _SECRET_NAME.search(name) is not None and _NO_SECRET.search(name) is None


def redact(env: Mapping[str, str]) -> dict[str, str]:
    """Variables as they may be written down.

    Values of secret names are hidden, and in the others passwords in URLs and the values of
    secret names, of these variables and of this process.
    """
    more = secret_values(env)
    return {
        name: HIDDEN if value and is_secret(name) else hide(value, more)
        for name, value in env.items()
    }


def redact_all(document: Any) -> Any:
    """The same for nested values, by the names of their keys."""
    if isinstance(document, Mapping):
        return {
            key: HIDDEN if _is_filled(value) and is_secret(str(key)) else redact_all(value)
            for key, value in document.items()
        }
    if isinstance(document, list | tuple):
        return [redact_all(value) for value in document]
    return hide(document) if isinstance(document, str) else document


def holds_secret(value: Any) -> bool:
    """Whether something of these values would be hidden."""
    return bool(redact_all(value) != (list(value) if isinstance(value, tuple) else value))


def hide(text: str, more: Iterable[str] = ()) -> str:
    """Text without passwords and tokens in URLs, and without the values that this process holds
    under secret names. `more`: other values to hide.
    """
    for value in (*_own_values(tuple(os.environ.items())), *more):
        if value in text:
            text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _AFTER_SCHEME.sub(_without_user, text)
    if "=" in text:
        text = _PARAMETER.sub(_without_value, text)
    return _BEARER.sub(rf"\1{HIDDEN}", text)


def secret_values(env: Mapping[str, str]) -> tuple[str, ...]:
    """The values of secret names that can be looked for, longest first, as they are and as JSON
    has them.
    """
    found = {
        form
        for name, whole in env.items()
        if is_secret(name)
        for value in (whole, *(whole.split() if "://" in whole else ()))
        if _can_be_found(value)
        for form in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    }
    return tuple(sorted(found, key=len, reverse=True))


class Mask:
    """Blanks this process's secrets in a file that another one goes on writing. In place: every
    byte stays where it is, and who writes need not know.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        values = (*_own_values(tuple(os.environ.items())), *_passwords(os.environ.values()))
        self._values = [os.fsencode(value) for value in values]
        self._overlap = max(map(len, self._values), default=0) - 1
        self._seen = 0

    def apply(self) -> None:
        """Blank what was written since the last time."""
        if not self._values:
            return
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            descriptor = os.open(self._path, flags)
            try:
                self._blank(descriptor)
            finally:
                os.close(descriptor)

    def _blank(self, descriptor: int) -> None:
        start = max(0, self._seen - self._overlap)
        while chunk := os.pread(descriptor, _CHUNK, start):
            for value in self._values:
                at = chunk.find(value)
                while at >= 0:
                    os.pwrite(descriptor, b"*" * len(value), start + at)
                    at = chunk.find(value, at + len(value))
            self._seen = start + len(chunk)
            if len(chunk) < _CHUNK:
                return
            start = self._seen - self._overlap


def _passwords(values: Iterable[str]) -> set[str]:
    """Those in URLs, such as a proxy's."""
    found = set()
    for value in values:
        for rest in _AFTER_SCHEME.findall(value):
            user = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[0]
            if len(password := user.partition(":")[2]) >= _SHORTEST:
                found.add(password)
    return found


@lru_cache(maxsize=4)
def _own_values(pairs: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return secret_values(dict(pairs))


def _can_be_found(value: str) -> bool:
    """Not what also stands in harmless places: short words, and paths (SSH_KEY=~/.ssh/id)."""
    return len(value) >= _SHORTEST and not value.startswith(("/", "~", ".")) and value != HIDDEN


def _without_user(match: re.Match[str]) -> str:
    """user:password@host, also where the password holds an unescaped @ or /."""
    rest = match[0]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = authority.rpartition(":")[2]
    if "@" in authority:
        end = authority.rindex("@")
    elif ":" in authority and not port.isdigit() and "]" not in port and "@" in rest:
        end = rest.rindex("@")
    else:
        return rest
    return rest if _VARIABLE.fullmatch(rest[:end]) else HIDDEN + rest[end:]


def _without_value(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}={HIDDEN}" if is_secret(match[2]) else match[0]


def _is_filled(value: Any) -> bool:
    return value is not None and value != "" and not isinstance(value, bool | Mapping)
