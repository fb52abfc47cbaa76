"""Checkpoints: which are whole, sealing them with digests, and putting torn ones aside.

LLaMA-Factory takes the highest-numbered folder, torn or not, and begins with a fresh optimizer when
optimizer.pt or scheduler.pt is missing, without a word. So iisft always names the checkpoint, and
only names one that it has checked.
"""

import hashlib
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iisft import files
from iisft.errors import IisftError
from iisft.models.folder.safetensors import read_header

SEAL = "iisft-seal.json"
_NUMBERED = re.compile(r"(torn-)?checkpoint-(\d+)(?:\.\d+)?")
_PER_RANK = re.compile(r"rng_state(_\d+)?\.pth")


@dataclass(frozen=True, slots=True)
class Saved:
    """One checkpoint folder.

    `fault` says what is missing or torn, "" when a resume may rely on it.
    """

    step: int
    folder: Path
    fault: str

    @property
    def complete(self) -> bool:
        return not self.fault

    def as_json(self) -> dict[str, Any]:
        return {"step": self.step, "complete": self.complete} | (
            {"fault": self.fault} if self.fault else {}
        )


def checkpoints(output: Path, ranks: int, *, thorough: bool = False) -> list[Saved]:
    """Every checkpoint of a run in the order of its steps, those put aside included.

    Args:
        output: the trainer's output folder.
        ranks: the world size; each rank saves the state of its random numbers.
        thorough: read every byte: compare the digests of sealed files, the checksums inside the
        others.
    """
    return sorted(_saved(output, ranks, thorough), key=lambda saved: (saved.step, saved.complete))


def newest_complete(output: Path, ranks: int, *, thorough: bool = False) -> Saved | None:
    """What a resume starts from.

    Checkpoints are read newest first, and none older than the first whole one.
    """
    folders = [(int(match[2]), folder) for folder, match in _numbered(output) if not match[1]]
    for step, folder in sorted(folders, reverse=True):
        if not (fault := _fault(folder, step, ranks, thorough)):
            return Saved(step, folder, fault)
    return None


def eval_losses(events: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Step -> evaluation loss, the latest where a step was evaluated again."""
    found: dict[int, float] = {}
    for event in events:
        step, loss = event.get("step"), event.get("eval_loss")
        said = event.get("kind") in ("metrics", "redone")
        if said and isinstance(loss, float) and math.isfinite(loss) and isinstance(step, int):
            found[step] = loss
    return found


def best_of(saved: Iterable[Saved], losses: Mapping[int, float]) -> Saved | None:
    """The whole checkpoint with the lowest evaluation loss, the earlier of two alike; None where
    none was evaluated.
    """
    evaluated = [one for one in saved if one.complete and one.step in losses]
    return min(evaluated, key=lambda one: (losses[one.step], one.step), default=None)


def put_torn_aside(output: Path, newer_than: int) -> list[str]:
    """Rename the checkpoints after that step, which are torn, and name them.

    The trainer's rotation would count and delete a folder whose name begins with checkpoint-.

    Raises:
        OSError: a folder can't be renamed.
    """
    moved = []
    for folder, match in sorted(_numbered(output), key=lambda pair: pair[0]):
        if not match[1] and int(match[2]) > newer_than:
            target, number = output / f"torn-{folder.name}", 2
            while target.exists():
                target, number = output / f"torn-{folder.name}.{number}", number + 1
            folder.rename(target)
            moved.append(target.name)
    return moved


def seal(saved: Saved, ranks: int) -> None:
    """Make a whole checkpoint durable and record its digests beside it.

    The trainer writes without fsync; what is sealed has reached the disk.

    Raises:
        OSError: it was deleted meanwhile, or the disk is full.
    """
    entries = {}
    for name in needed_files(saved.folder, ranks):
        with files.open_regular(saved.folder / name) as stream:
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            entries[name] = {"size": stream.tell(), "sha256": digest}
    files.write_json_atomically(saved.folder / SEAL, {"step": saved.step, "files": entries})


def sealed_size(saved: Saved) -> int:
    """Bytes of the sealed files, 0 when it is not sealed: what the next checkpoint will
    take too.
    """
    return sum(int(entry["size"]) for entry in _sealed(saved.folder).values())


def is_sealed(saved: Saved) -> bool:
    return (saved.folder / SEAL).exists()


def needed_files(folder: Path, ranks: int) -> list[str]:
    """What a resume reads: adapter, optimizer, schedule, random states of every rank, and the
    trainer's own state.
    """
    # DeepSpeed keeps its optimizer in shards below the folder that `latest` names
    if (folder / "latest").exists():
        below = files.last_lines(folder / "latest")
        shards = sorted((folder / below[-1].strip()).glob("*.pt")) if below else []
        optimizer = ["latest", *(str(path.relative_to(folder)) for path in shards)]
    else:
        optimizer = ["optimizer.pt"]
    states = ["rng_state.pth"] if ranks == 1 else [f"rng_state_{rank}.pth" for rank in range(ranks)]
    return ["adapter_model.safetensors", *optimizer, "scheduler.pt", *states, "trainer_state.json"]


def _numbered(output: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for folder in output.glob("*checkpoint-*"):
        if (match := _NUMBERED.fullmatch(folder.name)) and folder.is_dir():
            yield folder, match


def _saved(output: Path, ranks: int, thorough: bool) -> Iterator[Saved]:
    for folder, match in _numbered(output):
        step = int(match[2])
        if match[1]:
            yield Saved(step, folder, "torn, put aside")
        else:
            yield Saved(step, folder, _fault(folder, step, ranks, thorough))


def _fault(folder: Path, step: int, ranks: int, thorough: bool) -> str:
    sealed = _sealed(folder)
    for name in needed_files(folder, ranks):
        path = folder / name
        try:
            size = path.stat().st_size
            if name in sealed:
                fault = _unlike_seal(path, size, sealed[name], thorough)
            else:
                fault = _unreadable(path, size, step, thorough)
        except (
            OSError,
            IisftError,
            zipfile.BadZipFile,
            ValueError,
            EOFError,
            NotImplementedError,
            RuntimeError,
            KeyError,
            TypeError,
        ) as error:
            fault = (
                "is missing" if isinstance(error, FileNotFoundError) else f"can't be read ({error})"
            )
        if fault:
            return f"{name} {fault}"
    return ""


def _unlike_seal(path: Path, size: int, entry: dict[str, Any], thorough: bool) -> str:
    if size != entry["size"]:
        return f"has {size} bytes instead of {entry['size']}"
    if thorough:
        with files.open_regular(path) as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
                return "is not what was recorded when it was saved"
    return ""


def _unreadable(path: Path, size: int, step: int, thorough: bool) -> str:
    if path.suffix == ".safetensors":
        read_header(path)  # raises on a cut file
    elif path.name == "trainer_state.json":
        state = files.read_json_object(path)
        if state is None or state.get("global_step") != step:
            return "is torn or of another step"
    elif path.suffix in (".pt", ".pth"):
        # torch's format since 1.6; its directory stands at the end
        with files.open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            # torch stores its parts as they are: whatever unpacks to more is none of its files
            if sum(part.file_size for part in archive.infolist()) > size:
                return "is not a file of torch"
            if thorough and (bad := archive.testzip()):
                return f"is torn at {bad}"
    elif not size:
        return "is empty"
    return ""


def _sealed(folder: Path) -> dict[str, Any]:
    entries = (files.read_json_object(folder / SEAL) or {}).get("files")
    return entries if isinstance(entries, dict) else {}
