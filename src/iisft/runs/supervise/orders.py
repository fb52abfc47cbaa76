"""A resume on node 0 reaches the other machines of a run as a file in the shared run folder, where
their supervisors wait for it.
"""

import secrets
from dataclasses import dataclass

from iisft import files
from iisft.errors import EnvironmentFault
from iisft.runs.record.folder import RunFolder


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
