"""Notices of how a run fares, to phones and chats: addresses as apprise has them.

From the preset's `notify`, where $NAME stands for a variable, and from $IISFT_NOTIFY. The addresses
are secrets: they reach the sending process through its environment and stand in no file. It is a
process of its own, so that a server that hangs, or a broken package, ends no run.

Standard library until something is sent: the supervisor imports this.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from iisft import process
from iisft.errors import ExitCode, Finding
from iisft.secrets import hide

VARIABLE = "IISFT_NOTIFY"
_TO = "IISFT_NOTIFY_TO"
_TIMEOUT_S = 30.0
_NAMED = re.compile(r"\$(\w+|\{\w+\})")
_INSTALL = "pip install 'iisft[notify]'"


class Answer(NamedTuple):
    """What became of a notice at one place, named without its secret; `why` it did not arrive."""

    place: str
    why: str = ""
    secret: bool = False


def addresses(of_preset: Sequence[str], env: Mapping[str, str]) -> tuple[list[str], list[Finding]]:
    """Where notices go, and what is wrong with the preset's `notify`: variables that aren't set."""
    found, problems = [], []
    for address in of_preset:
        unset = [name for each in _NAMED.findall(address) if not env.get(name := each.strip("{}"))]
        if unset:
            problems.append(
                _warning(f"notify names ${unset[0]}, which isn't set", f"export {unset[0]}=...")
            )
        else:
            found.append(_NAMED.sub(lambda match: env[match[1].strip("{}")], address))
    return [*found, *env.get(VARIABLE, "").split()], problems


def check(of_preset: Sequence[str], env: Mapping[str, str]) -> list[Finding]:
    """What is wrong with the places before a run starts; nothing is sent.

    Takes half a second where there are any.
    """
    to, found = addresses(of_preset, env)
    for address, answer in zip(to, send("", "", to), strict=False):
        if answer.secret and address in of_preset:
            text = f"{answer.place} holds a secret, and a run keeps its preset in its folder"
            fix = "write it as $NAME in notify, and: export NAME=..."
            found.append(Finding("notify-secret", text, where="notify", fix=fix))
        found += problems([answer])
    return found


def problems(answers: Sequence[Answer]) -> list[Finding]:
    """A finding for each place that a notice could not be sent to."""
    return [
        _warning(f"no notice reaches {answer.place}: {answer.why}", "iisft notify test")
        for answer in answers
        if answer.why
    ]


def _warning(text: str, fix: str) -> Finding:
    return Finding(
        "notify", text, where="notify", fix=fix, severity="warn", exit_code=ExitCode.ENVIRONMENT
    )


def send(title: str, text: str, to: Sequence[str]) -> list[Answer]:
    """Send one notice to every address; without a text only look at them."""
    if not to:
        return []
    argv = [sys.executable, "-P", "-m", "iisft.notices", title, text]
    env = {**os.environ, _TO: json.dumps(list(to))}
    try:
        done = process.run(argv, timeout_s=_TIMEOUT_S, env=env)
        return [Answer(str(a), hide(str(b)), c is True) for a, b, c in json.loads(done.stdout)]
    except TimeoutError:
        return [Answer("any place", f"no answer within {_TIMEOUT_S:.0f} s")]
    except (OSError, ValueError, TypeError):
        return [Answer("any place", "the sending process died")]


def main(title: str, text: str) -> list[Answer]:
    """In the sending process. Without a text nothing is sent, and the addresses are looked at."""
    try:
        import apprise
    except ImportError:
        return [Answer("any place", f"apprise isn't installed ({_INSTALL})")]
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("apprise").addHandler(handler)
    answers = []
    for address in json.loads(os.environ[_TO]):
        place: Any = apprise.Apprise.instantiate(address)
        if place is None:
            scheme = re.match(r"\w+(?=://)", address)
            why = "not an address that apprise knows (scheme://...)"
            answers.append(Answer(scheme[0] if scheme else "one of the addresses", why))
            continue
        masked, whole = (place.url(privacy=hidden).partition("?")[0] for hidden in (True, False))
        # never the address as it stands, which is hidden wherever it appears
        shown = " ".join(masked.split("/")[:3:2]).replace(":", "", 1)
        arrived = not text or place.notify(title=title, body=text)
        why = "" if arrived else said[-1] if said else "it was not taken"
        answers.append(Answer(shown, why, secret=masked != whole))
    return answers


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:3])))
