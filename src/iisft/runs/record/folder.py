"""The run folder: every file name that a run has, and the reading and writing of its records."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files, json_values, process
from iisft.errors import RunStateError
from iisft.process import ProcessIdentity
from iisft.runs.record import run_record
from iisft.runs.record.run_record import RunRecord
from iisft.secrets import hide
from iisft.workspace import START_ADAPTER

EXIT = "exit.json"
NODE_LIVES = ("starting", "running")  # states of a node, in its file
_LONGEST_SILENCE_S = 120.0  # of another machine, whose clock may differ from ours


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run.

    Node 0 owns the folder; other nodes of a shared workspace write files of their own beside.
    """

    path: Path
    node_rank: int = 0

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def marker(self) -> str:
        """What the processes of this run's trainer on this node carry in their environment."""
        return f"{self.path}{self._node}"

    @property
    def record(self) -> Path:
        """What was asked and what was observed.

        Written at creation, then by the supervisor alone.
        """
        return self.path / "run.json"

    @property
    def preset(self) -> Path:
        return self.path / "preset.yaml"

    @property
    def train_yaml(self) -> Path:
        return self.path / "train.yaml"

    @property
    def resume_yaml(self) -> Path:
        """train.yaml and the checkpoint to go on from."""
        return self.path / "resume.yaml"

    @property
    def reserve(self) -> Path:
        """Room on the disk that is given back before the end is recorded."""
        return self.path / f".reserve{self._node}"

    @property
    def supervisor_lock(self) -> Path:
        """Held by this node's supervisor as long as it lives."""
        return self.path / f".supervisor{self._node}.lock"

    @property
    def resume_lock(self) -> Path:
        """Held while a run is being brought back on this node."""
        return self.path / f".resume{self._node}.lock"

    @property
    def command(self) -> Path:
        return self.path / "command.sh"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def train_log(self) -> Path:
        return self.logs / f"train{self._node}.log"

    @property
    def supervisor_log(self) -> Path:
        return self.logs / f"supervisor{self._node}.log"

    @property
    def events(self) -> Path:
        return self.path / f"events{self._node}.jsonl"

    @property
    def exit(self) -> Path:
        return self.path / (f"exit{self._node}.json" if self.node_rank else EXIT)

    @property
    def processes(self) -> Path:
        """Who supervises and who trains on this node."""
        return self.path / f"processes{self._node}.json"

    @property
    def stop_request(self) -> Path:
        return self.path / "stop.json"

    @property
    def node_file(self) -> Path:
        """What this node tells the others of a run on several machines."""
        return self.path / f"node-{self.node_rank}.json"

    @property
    def resume_order(self) -> Path:
        """Written by a resume on node 0, for the supervisors that wait on the other nodes."""
        return self.path / "resume-order.json"

    @property
    def queue_entry(self) -> Path:
        """In the workspace's queue as long as it waits there, runs from there, or just ended."""
        return self.path.parent.parent / "queue" / f"{self.id}.json"

    @property
    def cards(self) -> Path:
        """The GPUs that the queue gave to this run."""
        return self.path / "cards.json"

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def trainer_log(self) -> Path:
        return self.output / "trainer_log.jsonl"

    @property
    def trainer_state(self) -> Path:
        return self.output / "trainer_state.json"

    @property
    def model(self) -> Path:
        """The view that the trainer loads."""
        return self.path / "model"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset"

    @property
    def start(self) -> Path:
        """The run's copy of the adapter that it goes on from, where lora.start names one."""
        return self.path / START_ADAPTER

    @property
    def tokenized(self) -> Path:
        """LLaMA-Factory's own tokens of the rows, where they were made while staging."""
        return self.path / "tokenized"

    @property
    def modules_cache(self) -> Path:
        return self.path / f"modules{self._node}"

    @property
    def datasets_cache(self) -> Path:
        """The rows as the trainer's library reads and tokenises them: a resumed run takes them
        again, a finished one needs them no more.
        """
        return self.path / f"rows-cache{self._node}"

    @property
    def caches(self) -> dict[str, str]:
        """Variables that keep in the run what the trainer's libraries would write to the home
        folder, once more for every run.
        """
        return {
            "HF_MODULES_CACHE": str(self.modules_cache),
            "HF_DATASETS_CACHE": str(self.datasets_cache),
        }

    @property
    def board(self) -> Path:
        """For TensorBoard, the same after a resume, so that a run has one curve."""
        return self.path / "tensorboard"

    @property
    def predictions(self) -> Path:
        """One file of answers for each dataset and checkpoint, and beside it how they were made."""
        return self.path / "predictions"

    def predictions_of(self, data: str, which: str) -> Path:
        """Answers to the dataset `data` by `which`: a checkpoint's step, "final", "base", or
        "api-MODEL".
        """
        return self.predictions / f"{data}@{which}.jsonl"

    def log_of(self, command: str) -> Path:
        """What the child of predict, chat, serve or export says."""
        return self.logs / f"{command}.log"

    @property
    def _node(self) -> str:
        return f".node-{self.node_rank}" if self.node_rank else ""

    def read_record(self) -> RunRecord | None:
        """run.json, None when it can't be used; what it lacks is named by its `missing`."""
        return run_record.read(self.record)

    def whole_record(self) -> RunRecord:
        """run.json with everything that a trainer is started from.

        Raises:
            RunStateError: it is missing, unreadable, broken, or of a format that is not known.
        """
        record = self.read_record()
        if record is None or record.missing:
            raise RunStateError(
                "record-broken",
                f"{self.id}: {run_record.why_unusable(self.record)}",
                where=str(self.record),
                fix="its checkpoints are in output/; start a new run",
            )
        return record

    def read_processes(self) -> dict[str, Any]:
        """Who supervises and trains here.

        Nothing when it was written for another folder, of which this is a copy.
        """
        found = files.read_json_object(self.processes) or {}
        return found if found.get("run") == self.marker else {}

    def live_supervisor(self) -> ProcessIdentity | None:
        """Who supervises this run now: a process that was started for that."""
        return self._live("supervisor", process.SUPERVISOR_MARKER)

    def live_trainer(self) -> ProcessIdentity | None:
        """The process that trains now, or None."""
        return self._live("trainer", process.RUN_MARKER)

    def _live(self, role: str, variable: str) -> ProcessIdentity | None:
        found = ProcessIdentity.from_json(self.read_processes().get(role))
        try:
            owner = self.path.stat().st_uid
        except OSError:
            return None
        return found if found and found.alive_for(variable, self.marker, owner) else None

    def live_elsewhere(self) -> str:
        """The host on which this node of a run on several machines lives, where that is another
        one. Its processes can't be seen from here: what its supervisor last said is all there is.
        """
        supervisor = ProcessIdentity.from_json(self.read_processes().get("supervisor"))
        here = process.identity_of(os.getpid())
        if supervisor is None or here is None or supervisor.boot_id == here.boot_id:
            return ""
        said = files.read_json_object(self.node_file) or {}
        try:
            fresh = time.time() - self.node_file.stat().st_mtime < _LONGEST_SILENCE_S
        except OSError:
            return ""
        alive = fresh and said.get("state") in NODE_LIVES
        return str(said.get("host") or "another machine") if alive else ""

    def update_record(self, **values: Any) -> None:
        """Change some keys of run.json; only its one writer (the supervisor) may call this."""
        before = files.read_json_object(self.record) or {}
        files.write_json_atomically(self.record, before | values)

    def append_event(self, kind: str, **values: Any) -> None:
        """One line of events.jsonl with its time; on a full disk it is let go."""
        with contextlib.suppress(OSError):
            files.append_line(self.events, event_line(kind, **values))

    def read_events(self) -> Iterator[dict[str, Any]]:
        """All whole events so far; torn lines are passed over."""
        for line in files.LineFollower(self.events).read():
            if (event := parse_event(line)) is not None:
                yield event


def event_line(kind: str, **values: Any) -> str:
    """An event of this moment."""
    return hide(json_values.json_text({"time": round(time.time(), 3), "kind": kind, **values}))


def parse_event(line: str) -> dict[str, Any] | None:
    """One line of events.jsonl, or None when it is torn."""
    try:
        event = json_values.parse_json(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "kind" in event else None
