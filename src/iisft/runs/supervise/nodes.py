"""What the supervisors of a run on several machines tell each other: each writes a small file into
the shared run folder, again and again, and reads those of the others. A resume on node 0 is a file
as well, for which the others wait.

Clocks of machines differ, so what counts is that a file changes while one looks, by one's own
clock. A file is opened for each look: NFS asks the server then, while what stat tells may be a
minute old (close-to-open, nfs(5)).
"""

import contextlib
import json
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from iisft import files
from iisft.errors import EnvironmentFault, Finding
from iisft.quoting import shell_word, visible_line
from iisft.runs.record.events import Events
from iisft.runs.record.folder import NODE_LIVES, RunFolder
from iisft.runs.record.run_record import RunRecord
from iisft.runs.supervise.ending import Ending
from iisft.secrets import hide

NODE_LOST = "node-lost"
_BEAT_S = 5.0
_LOOK_S = 1.0
_COMES_S = 60.0  # from our start to the other nodes'
_SIZE = 4096  # bytes of a node's file: written over itself, it finds room on a full disk too
_LONGEST = 250  # characters of a reason, each up to twelve bytes


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


@dataclass
class _Peer:
    """Another node, by what its file said last. `moved`: it changed since we look, at `changed`."""

    file: RunFolder
    said: dict[str, Any] = field(default_factory=dict)
    moved: bool = False
    changed: float = field(default_factory=time.monotonic)
    trainer: str = ""

    def look(self) -> None:
        said = files.read_json_object(self.file.node_file, _SIZE)
        if said is not None and said != self.said:
            self.said, self.moved, self.changed = said, True, time.monotonic()

    def text(self, key: str) -> str:
        return visible_line(str(self.said.get(key, "")))[:_LONGEST]

    @property
    def alive(self) -> bool:
        return self.said.get("state") in NODE_LIVES

    @property
    def name(self) -> str:
        host = self.text("host")
        return f"node {self.file.node_rank}" + (f" on {host}" if host else "")


class Nodes:
    """The other nodes of a run, watched from one; of a run on one machine it does nothing."""

    def __init__(self, folder: RunFolder, record: RunRecord, events: Events) -> None:
        self._folder = folder
        self._events = events
        self.order = order_of(folder) or Order()
        self._silence_s = record.watch.node_silence_s
        self._beat_s = min(_BEAT_S, self._silence_s / 4)
        others = [rank for rank in range(record.nodes) if rank != folder.node_rank]
        self._peers = [_Peer(RunFolder(folder.path, rank)) for rank in others]
        self._own: dict[str, Any] = {"host": socket.gethostname(), "state": "starting"}
        self._life, self._beats = secrets.token_hex(4), 0
        self._telling = threading.Lock()
        self._adopted, self._order_before = False, ""
        self._cause: Finding | None = None
        self._symptom: Finding | None = None
        self._said_awaited = False
        self._looked = self._began = time.monotonic()
        self._ended = threading.Event()
        # beats go on while the supervisor reads a checkpoint of gigabytes
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def begin(self) -> None:
        if self._peers:
            before = files.read_json_object(self._folder.node_file, _SIZE) or {}
            self._order_before = str(before.get("order", ""))
            for peer in self._peers:
                peer.look()  # what an earlier life left
                peer.moved = False
            self._tell()
            self._thread.start()

    def training(self, trainer: str, from_step: int, *, adopted: bool) -> None:
        """A trainer runs here: `trainer` is the word by which it is told from an earlier one."""
        self._adopted = adopted
        if adopted:  # it began before a resume on node 0 that its supervisor has not seen
            self.order = Order(self._order_before)
        self._tell(state="running", trainer=trainer, from_step=from_step)

    def lost(self) -> Finding | None:
        """Why this node's trainer can't go on without the others."""
        return self._cause or self._symptom

    def explain(self, ending: Ending, told_to_end: Callable[[], bool]) -> Ending:
        """The ending with its reason from the node where it was found: who only lost a connection
        waits until another one has said more, or has fallen silent.
        """
        if not self._peers or ending.state != "failed":
            return ending
        if ending.cause != NODE_LOST and not ending.lost_others:
            return ending
        self._tell_ending(ending, symptom=True)
        deadline = time.monotonic() + self._silence_s + 3 * self._beat_s
        while self._cause is None and time.monotonic() < deadline and not told_to_end():
            if all(self._joined(peer) and not peer.alive for peer in self._peers):
                break
            time.sleep(0.2)
        cause = self._cause
        if cause is None or cause.message == ending.reason:
            return ending
        if ending.cause != NODE_LOST:
            self._events.finding(cause)
        return replace(ending, reason=cause.message, fix=cause.fix, cause=NODE_LOST)

    def ended(self, ending: Ending) -> None:
        """The last word of this life."""
        self._ended.set()
        self._tell_ending(ending, symptom=ending.lost_others and ending.cause != NODE_LOST)

    def refused(self, order: Order, reason: str) -> None:
        """A resume on node 0 that this node can't follow."""
        self.order = order
        self._tell(state="failed", reason=hide(reason)[:_LONGEST], cause="", symptom=False)

    def _tell_ending(self, ending: Ending, *, symptom: bool) -> None:
        reason = hide(ending.reason)[:_LONGEST]
        self._tell(state=ending.state, reason=reason, cause=ending.cause, symptom=symptom)

    def _watch(self) -> None:
        told = -math.inf
        while not self._ended.wait(_LOOK_S):
            if time.monotonic() - told >= self._beat_s:
                told = time.monotonic()
                self._tell()
            with contextlib.suppress(OSError):  # the shared folder is out of reach for a while
                self._look()

    def _tell(self, **values: Any) -> None:
        if not self._peers:
            return
        with self._telling, contextlib.suppress(OSError):
            self._own |= values
            self._beats += 1
            now = {"order": self.order.word, "life": self._life, "beat": self._beats}
            content = json.dumps(self._own | now).encode().ljust(_SIZE - 1) + b"\n"
            # closing is what brings it to the server (close-to-open); a power cut may take it
            descriptor = os.open(self._folder.node_file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
            try:
                os.pwrite(descriptor, content, 0)
            finally:
                os.close(descriptor)

    def _look(self) -> None:
        now = time.monotonic()
        stood_still = now - self._looked > self._silence_s / 2  # we did, or the shared folder
        self._looked = now
        for peer in self._peers:
            if stood_still:
                peer.changed = now
            peer.look()
        self._follow_order()
        for peer in self._peers:
            sentence, symptom = self._judge(peer, time.monotonic())
            if sentence:
                finding = Finding(NODE_LOST, sentence, fix=self._fix())
                if symptom:
                    self._symptom = self._symptom or finding
                else:
                    self._cause = self._cause or finding
        if now - self._began > _COMES_S and not self._said_awaited:
            self._said_awaited = True
            for peer in self._peers:
                if not self._joined(peer):
                    self._events.finding(self._awaited(peer))

    def _follow_order(self) -> None:
        """A resume on node 0 is ours too where it has found us waiting; else it ends this life."""
        order = order_of(self._folder)
        if order is None or order.word == self.order.word or not self._folder.node_rank:
            return
        zero = next(peer for peer in self._peers if not peer.file.node_rank)
        if self._adopted or self._joined(zero):
            self._cause = self._cause or Finding(
                NODE_LOST, "node 0 was resumed meanwhile: this node begins again with it"
            )
        else:
            self.order = order

    def _joined(self, peer: _Peer) -> bool:
        """It is in the life that we are in; what it said before our trainer began counts only for
        an adopted one.
        """
        return peer.said.get("order") == self.order.word and (peer.moved or self._adopted)

    def _judge(self, peer: _Peer, now: float) -> tuple[str, bool]:
        """Why the others can't go on, and whether that is only what a node met of a third."""
        if not self._joined(peer):
            return "", False
        state, trainer = peer.said.get("state"), peer.text("trainer")
        if state == "failed":
            of_another = peer.said.get("cause") == NODE_LOST
            reason = peer.text("reason")
            return (
                reason if of_another else f"{peer.name} failed: {reason}",
                peer.said.get("symptom") is True,
            )
        silent_s = now - peer.changed
        if state in ("stopped", "lost") and silent_s > self._silence_s:
            asked = self._folder.stop_request.exists()  # all were, and some take longer
            return "" if asked else f"{peer.name} has ended: {peer.text('reason')}", False
        if not peer.alive:
            return "", False
        if silent_s > self._silence_s:
            return f"{peer.name} has given no sign of life for {silent_s:.0f} s", False
        if trainer and peer.trainer not in ("", trainer):
            return f"{peer.name} has lost its trainer, and began another", False
        peer.trainer = trainer or peer.trainer
        begins = [each.get("from_step") for each in (self._own, peer.said)]
        if None not in begins and begins[0] != begins[1]:
            where = f"{peer.name} goes on from step {begins[1]}, this one from step {begins[0]}"
            return f"{where}: they see different checkpoints", False
        return "", False

    def _fix(self) -> str:
        on_zero = f"iisft resume {shell_word(self._folder.id)}"
        if self._folder.node_rank:
            return f"on node 0: {on_zero}"
        return f"{on_zero}; on a node that does not follow: {on_zero} --node-rank N"

    def _awaited(self, peer: _Peer) -> Finding:
        command = (
            f"iisft resume {shell_word(self._folder.id)}" if self.order.word else "iisft train"
        )
        text = f"{peer.name} has not joined within {_COMES_S:.0f} s; the trainer waits for it"
        fix = f"there: {command} --node-rank {peer.file.node_rank}"
        return Finding("node-awaited", text, fix=fix, severity="warn")
