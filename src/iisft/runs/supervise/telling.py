"""What of a run's fate is told as a notice, in two sentences that hold nothing of its rows."""

import os
import re
import socket
import threading
from typing import Any

from iisft import notices
from iisft.errors import Finding
from iisft.quoting import shell_word
from iisft.runs.record.events import Events
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord
from iisft.runs.supervise.ending import Ending

_TOLD = ("disk-low",)  # findings that somebody can still do something about
_LONGEST_WAIT_S = 45.0
# What an exception says may quote a row: its name, and what stands before it, does not.
_QUOTES = re.compile(r"[:;(].*", re.DOTALL)


class Teller:
    """Sends in threads: neither a slow server nor a full queue keeps a trainer waiting."""

    def __init__(self, folder: RunFolder, record: RunRecord, events: Events) -> None:
        of_preset = record.preset.get("notify") or []
        texts = [text for text in of_preset if isinstance(text, str)]
        to, problems = notices.addresses(texts if isinstance(of_preset, list) else [], os.environ)
        self._to = [] if folder.node_rank else to
        self._run = folder.id
        self._events = events
        self._threads: list[threading.Thread] = []
        for problem in problems if not folder.node_rank else ():
            events.finding(problem)
        events.listener = self._finding

    def restarting(self, ending: Ending, pause_s: float) -> None:
        what = (
            f"stopped at step {ending.step}: {_cause(ending)}. It starts again in {pause_s:.0f} s"
        )
        self._tell("restarts", what)

    def ended(self, ending: Ending, outcome: dict[str, Any]) -> None:
        """Not what somebody did by hand: a stop on request is no news."""
        run, steps = shell_word(self._run), f"step {ending.step} of {ending.total_steps or '?'}"
        if ending.state == "finished":
            loss = outcome["loss"]
            learnt = f", loss {loss:.4f}" if isinstance(loss, float) else ""
            hours = (outcome["ended"] - (outcome["started"] or outcome["ended"])) / 3600
            text = f"{ending.reason} in {hours:.1f} h{learnt}. Look at it: iisft report {run}"
            self._tell("finished", text)
        elif ending.state == "failed":
            text = f"At {steps}: {_cause(ending)}. More, and the fix: iisft status {run}"
            self._tell("failed", text)
        elif ending.state == "lost":
            self._tell("was ended by the machine", f"At {steps}. Go on: iisft resume {run}")

    def wait(self) -> None:
        """Until everything is sent, but not for ever."""
        for thread in self._threads:
            thread.join(_LONGEST_WAIT_S)

    def _finding(self, finding: Finding) -> None:
        if finding.id in _TOLD:
            self._tell("has little room", f"{finding.message}. What helps: {finding.fix}")

    def _tell(self, happened: str, text: str) -> None:
        if not self._to:
            return
        title = f"iisft: {self._run} {happened} ({socket.gethostname()})"
        thread = threading.Thread(target=self._send, args=(title, text), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _send(self, title: str, text: str) -> None:
        for problem in notices.problems(notices.send(title, text, self._to)):
            self._events.finding(problem)


def _cause(ending: Ending) -> str:
    said = _QUOTES.sub("", ending.reason).strip() or "the trainer ended"
    return f"{said} ({ending.cause})" if ending.cause else said
