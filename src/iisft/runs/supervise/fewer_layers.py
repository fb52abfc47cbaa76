"""After a GPU ran out of memory: the next start keeps the products of fewer layers."""

from iisft.child.constants_iisft import LAYERS_KEPT_KEY
from iisft.errors import Finding
from iisft.files import read_json_object, sha256_of, write_json_atomically
from iisft.runs.record.events import Events
from iisft.runs.record.folder import RunFolder
from iisft.runs.record.run_record import RunRecord


def keep_fewer(folder: RunFolder, record: RunRecord, events: Events) -> bool:
    """Change view and record to three quarters of the layers; False where none is kept.

    The bits of the run stay the same: a layer that keeps nothing computes the same twice.
    """
    kept = record.proof.layers_kept
    config = read_json_object(folder.model / "config.json")
    if not kept or config is None:
        return False
    fewer = kept * 3 // 4
    try:
        write_json_atomically(folder.model / "config.json", config | {LAYERS_KEPT_KEY: fewer})
        digest = sha256_of(folder.model / "config.json")
        folder.update_record(
            expected=dict(record.expected) | {"layers_kept": fewer},
            view=dict(record.view) | {"config.json": digest},
        )
    except OSError:
        return False
    text = f"a GPU ran out of memory with the products of {kept} layers kept: now {fewer} keep them"
    events.finding(Finding("fewer-layers-kept", text, severity="warn"))
    return True
