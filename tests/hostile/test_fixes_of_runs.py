"""Every fix that a command on a run prints is typed: afterwards that command, or the fix itself,
does not say the same again.
"""

import io
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers import CLI

COMMANDS = [
    "stop RUN",
    "predict RUN",
    "predict RUN --data 情报 --checkpoint best",
    "predict RUN --data 情报 --checkpoint 99",
    "predict RUN --data 情报 --checkpoint final",
    "predict RUN --data 情报 --checkpoint all",
    "predict RUN --data 情抱",
    "chat RUN --checkpoint all",
    "evaluate RUN",
    "compare RUN",
    "chat RUN",
    "export RUN -o OUT",
    "export RUN -o OUT --checkpoint base",
    "serve RUN --port 1",
    "logs RUN",
    "runs rm RUN",
    "runs diff RUN finished",
    "resume RUN --max-steps 3",
]
STATES: dict[str, dict[str, Any]] = {
    "finished": {},
    "failed": {"state": "failed"},
    "stopped": {"state": "stopped"},
    "lost": {"state": "lost"},
    "without-checkpoint": {"state": "lost", "checkpoints": ()},
    "finisched": {},  # typed for "finished"; no such run is made
}
# Said in words: what somebody who follows it types instead.
IN_WORDS = {
    "choose another -o, or remove it": "export RUN -o OUT2",
    "say yes, or iisft runs rm --yes RUN...": "runs rm --yes RUN",
}


def typed(fix: str, argv: list[str], run: str) -> list[str]:
    """The command line that follows a fix."""
    if fix in IN_WORDS:
        return IN_WORDS[fix].replace("RUN", run).split()
    first = re.sub(r"[;,] .*", "", fix).replace("NAME", "情报")
    if first.startswith("iisft "):
        return shlex.split(first)[1:]
    assert first.startswith("--"), f"neither a command nor an option: {fix}"
    option, *value = shlex.split(first)
    kept = list(argv)
    if option in kept:
        del kept[kept.index(option) : kept.index(option) + 2]
    return [*kept, option, *value]


@pytest.mark.parametrize("state", STATES)
def test_a_fix_of_a_run_leads_on(
    state: str,
    iisft: CLI,
    make_run: Callable[..., Any],
    staged: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    make_run("finished")
    if state not in ("finished", "finisched"):
        make_run(state, **STATES[state])
    said = 0
    for command in COMMANDS:
        argv = [part if part != "RUN" else state for part in command.split(" ")]
        before = iisft(*argv)
        for fix in re.findall(r"^  fix: +(.*)$", before.err, re.MULTILINE):
            said += 1
            follow = typed(fix, argv, state)
            after = iisft(*follow)
            first = before.err[before.err.index("error:") :].splitlines()[0]
            assert "bug in iisft" not in after.err
            assert after.code == 0 or first not in after.err, (argv, fix, follow, after.err)
        for made in ("OUT", "OUT2"):
            shutil.rmtree(tmp_path / made, ignore_errors=True)
    assert said
