"""What chat, serve and export share: find a run with its models, and say what they need."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from iisft.cli import console
from iisft.errors import UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.inference.base_model import Source
    from iisft.inference.selection import Chosen


@dataclass(frozen=True)
class Ready:
    """A model that may be loaded. `max_new_tokens`: the longest answer."""

    source: "Source"
    chosen: "Chosen"
    max_new_tokens: int


def prepare(
    run: str | None,
    checkpoint: str | None,
    model: str | None,
    *,
    cpu: bool,
    max_tokens: int | None = None,
) -> Ready:
    """Check everything that can be wrong before the model is loaded, and say what it will take."""
    from iisft.inference import base_model as sources
    from iisft.inference import selection
    from iisft.runs.record.state import find_run

    if max_tokens is not None and max_tokens < 1:
        raise UsageError("max-tokens", f"--max-tokens must be at least 1, not {max_tokens}")
    workspace = Workspace.current()
    folder = find_run(workspace, run)
    chosen = selection.choose_one(folder, checkpoint)
    source = sources.find(folder, workspace, model=model, cpu=cpu)
    if source.drift:
        console.say(source.drift)
    if chosen.reason:
        console.say(chosen.reason)
    need = source.need(chosen)
    console.say(f"{folder.id} {need.sentence}")
    need.require()
    return Ready(source, chosen, max_tokens or int(source.record.setting("train.cutoff_len")))
