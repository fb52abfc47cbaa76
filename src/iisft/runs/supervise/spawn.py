"""Starting a run's supervisor."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from iisft import files, process
from iisft.errors import RunFailed
from iisft.llamafactory.interpreter import training_interpreter
from iisft.process import ProcessIdentity
from iisft.runs.record.folder import RunFolder


def start_supervisor(folder: RunFolder, env: Mapping[str, str]) -> None:
    """Start it in a session of its own, and wait until it has recorded its trainer.

    That takes as long as reading a checkpoint of gigabytes from a slow disk.

    Raises:
        RunFailed: it died at once, or it could not start the trainer.
    """
    # A run's folder is data: nothing is imported from it (-P), and a relative entry of PYTHONPATH
    # means the caller's directory.
    argv = [
        sys.executable,
        "-P",
        "-m",
        "iisft.runs.supervise.supervisor",
        str(folder.path),
        str(folder.node_rank),
    ]
    env = {
        **env,
        process.SUPERVISOR_MARKER: folder.marker,
        "IISFT_PYTHON": str(training_interpreter()),
    }
    supervisor = process.Child(argv, cwd=Path("/"), env=env, output=folder.supervisor_log)
    while not (_is_recorded(folder, supervisor.pid) or folder.exit.exists()):
        if supervisor.returncode() is not None:
            raise RunFailed(
                "supervisor-died",
                "the supervisor did not start",
                where=str(folder.supervisor_log),
                fix=f"cat '{folder.supervisor_log}'",
            )
        time.sleep(0.01)
    if not _is_recorded(folder, supervisor.pid):
        outcome = files.read_json_object(folder.exit) or {}
        reason, fix = str(outcome.get("reason", "")), str(outcome.get("fix", ""))
        raise RunFailed(
            "start-failed", f"{folder.id}: {reason}", where=str(folder.supervisor_log), fix=fix
        )


def _is_recorded(folder: RunFolder, pid: int) -> bool:
    processes = folder.read_processes()
    identity = ProcessIdentity.from_json(processes.get("supervisor"))
    return identity is not None and identity.pid == pid
