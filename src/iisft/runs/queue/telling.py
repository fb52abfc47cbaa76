"""What the queue tells as a notice: a run that it could not start, and that it is empty."""

import os
import socket
from collections import Counter
from collections.abc import Iterable

from iisft import notices
from iisft.quoting import shell_word
from iisft.runs.queue.entries import Entry, Queue


def not_started(entry: Entry, reason: str) -> None:
    """A run that never came to its supervisor, which tells everything else."""
    text = f"{reason.partition(':')[0]}. More, and the fix: iisft status {shell_word(entry.id)}"
    _send(f"{entry.id} failed", text, [entry])


def empty(queue: Queue) -> None:
    """How the runs ended that were in it since it was last empty."""
    ended = Counter(entry.status.state for entry in queue.entries)
    counts = ", ".join(f"{number} {state}" for state, number in sorted(ended.items()))
    failed = [entry.id for entry in queue.entries if entry.status.state == "failed"]
    named = f" ({', '.join(failed[:5])}{', ...' if len(failed) > 5 else ''})" if failed else ""
    text = f"Of {len(queue.entries)} runs {counts}{named}. Look at them: iisft runs"
    _send("the queue is empty", text, queue.entries)


def _send(happened: str, text: str, entries: Iterable[Entry]) -> None:
    to: list[str] = []
    for entry in entries:
        of_preset = entry.record.preset.get("notify")
        texts = [one for one in of_preset if isinstance(one, str)] if of_preset else []
        to += notices.addresses(texts, os.environ)[0]
    title = f"iisft: {happened} ({socket.gethostname()})"
    for problem in notices.problems(notices.send(title, text, list(dict.fromkeys(to)))):
        entry.folder.append_event("finding", **problem.as_json())
