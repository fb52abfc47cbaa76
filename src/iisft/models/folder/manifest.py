"""A model folder's manifest: where each file came from and which bytes it must have."""

import os
import shlex
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from iisft.errors import Finding, Severity
from iisft.files import read_json_object, write_json_atomically
from iisft.workspace import lfs_pointers, lfs_pull

OWN_FOLDER = ".iisft"  # inside a model folder: manifest, parts, lock
_PAPERS = ("readme", "license", "licence", "notice", "use_policy")
_NAME = "manifest.json"
LOCAL = "local"  # the source of a folder that was adopted as it was


def is_safe_path(path: str) -> bool:
    """Whether a repository's path is safe to write.

    It stays inside the model folder, touches neither iisft's own folder nor git's, and prints as
    one line.
    """
    if not path or not path.isprintable() or "\\" in path or path.startswith("/"):
        return False
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and parts[0].lower() not in (
        OWN_FOLDER,
        ".git",
    )


def is_paper(path: str) -> bool:
    """Whether a file is only for people to read."""
    return path.lower().startswith(_PAPERS)


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file. `sha256` and `mtime_ns` are None until its bytes have been read here."""

    path: str
    size: int
    sha256: str | None = None
    mtime_ns: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True, slots=True)
class Manifest:
    """`complete` is false from the first byte of a download until the last file is proven."""

    source: str
    endpoint: str
    repo: str
    revision: str
    commit: str
    licence: str
    complete: bool
    files: tuple[ManifestFile, ...]
    time: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    def write(self, folder: Path) -> None:
        """Raises OSError when it can't be written."""
        place = folder / OWN_FOLDER
        place.mkdir(parents=True, exist_ok=True)
        write_json_atomically(place / _NAME, asdict(self))

    def as_json(self, folder: Path) -> dict[str, Any]:
        """What `--json` prints for a folder."""
        return {
            "dir": str(folder),
            "source": self.source,
            "endpoint": self.endpoint,
            "repo": self.repo,
            "revision": self.revision,
            "commit": self.commit,
            "licence": self.licence,
            "complete": self.complete,
            "files": [file.as_json() for file in self.files],
        }


def read(folder: Path) -> Manifest | None:
    """The manifest of a folder; None when it is missing, torn, or not one of ours."""
    content = read_json_object(folder / OWN_FOLDER / _NAME)
    if content is None:
        return None
    try:
        found = tuple(ManifestFile(**file) for file in content.pop("files"))
        manifest = Manifest(**content, files=found)
    except (KeyError, TypeError):
        return None
    sound = all(
        isinstance(file.path, str) and is_safe_path(file.path) and isinstance(file.size, int)
        for file in found
    )
    return manifest if sound else None


def stamped(folder: Path, file: ManifestFile, sha256: str) -> ManifestFile:
    """The entry of a file whose bytes were just read."""
    return replace(file, sha256=sha256, mtime_ns=(folder / file.path).stat().st_mtime_ns)


def quick_findings(folder: Path) -> list[Finding]:
    """How a folder differs from its manifest, judged by names, sizes and times alone.

    Empty for a folder without a manifest.
    """
    manifest = read(folder)
    if manifest is None:
        return []
    if not manifest.complete:
        there = sum(file.size for file in manifest.files if _size(folder / file.path) == file.size)
        text = (
            f"the download of {manifest.repo} has not finished: {gb(there)} of "
            f"{gb(manifest.size)} are here"
        )
        return [Finding("model-incomplete", text, where=str(folder), fix=repair_command(folder))]
    found, touched = [], []
    for file in manifest.files:
        path = folder / file.path
        try:
            stat = path.stat()
        except OSError:
            text = f"{file.path} is missing"
        else:
            if stat.st_size == file.size:
                touched += [file.path] if stat.st_mtime_ns != file.mtime_ns else []
                continue
            text = f"{file.path} has {stat.st_size} bytes; {file.size} were downloaded"
        keep = (
            f"; if you changed it yourself: iisft download --adopt {shlex.quote(str(folder))} "
            "--source local"
        )
        fix = repair_command(folder) + ("" if path.suffix == ".safetensors" else keep)
        severity: Severity = "warn" if is_paper(file.path) else "error"
        found.append(
            Finding("model-file-changed", text, where=str(path), fix=fix, severity=severity)
        )
    if touched:
        text = (
            f"{', '.join(touched[:3])}{' and more' if touched[3:] else ''}: written or copied "
            "since the download"
        )
        fix = f"iisft download --verify {shlex.quote(str(folder))}"
        found.append(
            Finding("model-file-touched", text, where=str(folder), fix=fix, severity="warn")
        )
    return found


def repo_by_place(folder: Path) -> str | None:
    """`owner/name` of a folder that lies in a workspace's models/."""
    absolute = folder.absolute()
    if absolute.parent.parent.name != "models":
        return None
    return f"{absolute.parent.name}/{absolute.name}"


def repair_command(folder: Path) -> str:
    """The command that completes a folder: the commit that it holds, from the hub it came from; of
    a clone, what git has not fetched.
    """
    if lfs_pointers(folder):
        return lfs_pull(folder)
    manifest = read(folder)
    if manifest is None:
        repo = shlex.quote(repo_by_place(folder) or "OWNER/NAME")
        return f"iisft download {repo} --to {shlex.quote(str(folder))}"
    words = ["iisft", "download", shlex.quote(manifest.repo or "OWNER/NAME")]
    if manifest.source != LOCAL:
        words += ["--source", manifest.source]
        if manifest.source == "huggingface" and manifest.commit:
            words += ["--revision", shlex.quote(manifest.commit)]
        elif manifest.revision != "master":
            words += ["--revision", shlex.quote(manifest.revision)]
    return " ".join([*words, "--to", shlex.quote(str(folder))])


def gb(count: int) -> str:
    """15.2 GB, 870 MB, 12 kB: decimal, as hubs and disks count."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - the same call, said where an error is an answer
    except OSError:
        return -1
