"""A resume on node 0 reaches the other machines of a run as a file in the shared run folder, where
their supervisors wait for it.
"""

import contextlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iisft import files
from iisft.errors import EnvironmentFault, IisftError
from iisft.runs.record.folder import RunFolder

if TYPE_CHECKING:
    from iisft.runs.supervise.nodes import Nodes

RESUME_WAIT_S = 24 * 3600.0  # how long the other nodes wait
_LOOK_S = 2.0


@dataclass(frozen=True, slots=True)
class Order:
    """A resume on node 0, as the other nodes read it. `word` is another one each time."""

    word: str = ""
    accept_drift: bool = False
    from_start: bool = False


def give_order(folder: RunFolder, *, accept_drift: bool, from_start: bool) -> None:
    """Let the supervisors that wait on other nodes resume as well.

    Raises:
        EnvironmentFault: the folder can't be written.
    """
    order = {
        "word": secrets.token_hex(8),
        "accept_drift": accept_drift,
        "from_start": from_start,
    }
    try:
        files.write_json_atomically(folder.resume_order, order)
    except OSError as error:
        text = f"the other nodes can't be told to resume: {error.strerror}"
        raise EnvironmentFault("output-unwritable", text, where=str(folder.resume_order)) from error


def order_of(folder: RunFolder) -> Order | None:
    """The last one; None where there is none, or it can't be read now."""
    said = files.read_json_object(folder.resume_order)
    if said is None:
        return None
    accept_drift, from_start = (said.get(key) is True for key in ("accept_drift", "from_start"))
    return Order(str(said.get("word", "")), accept_drift, from_start)


def await_order(nodes: "Nodes", folder: RunFolder, told_to_end: Callable[[], bool]) -> None:
    """After this node's life failed: wait for a resume on node 0, and resume this node too.

    Not for ever, not when told to end, and not when the run was removed or brought back here.
    """
    deadline = time.monotonic() + RESUME_WAIT_S
    while time.monotonic() < deadline and not told_to_end():
        with contextlib.suppress(OSError):  # the shared folder is out of reach for a while
            if not (folder.record.exists() and folder.exit.exists()):
                return
        order = order_of(folder)
        if order is None or order.word == nodes.order.word:
            time.sleep(_LOOK_S)
            continue
        from iisft.runs.supervise.resume import resume  # what it loads, a waiting process need not

        try:
            resume(
                folder, accept_drift=order.accept_drift, from_start=order.from_start, ordered=True
            )
        except IisftError as error:
            folder.append_event("finding", **error.finding.as_json())
            nodes.refused(order, str(error))
        else:
            return
