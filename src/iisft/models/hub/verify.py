"""Reads every byte of a model folder, against its manifest or, to adopt it, against a hub."""

import contextlib
import hashlib
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iisft.errors import CheckFailed, ExitCode, Finding, TransferError, UsageError
from iisft.models.folder import manifest as manifests
from iisft.models.folder.licence import licence_of
from iisft.models.folder.manifest import (
    LOCAL,
    OWN_FOLDER,
    Manifest,
    ManifestFile,
    is_paper,
    is_safe_path,
    repair_command,
    repo_by_place,
    stamped,
)
from iisft.models.hub.hubs import Hubs
from iisft.models.hub.listing import Listing, RemoteFile, select
from iisft.models.hub.network import PASSING
from iisft.models.hub.parallel import Show, Stop, Tally, each
from iisft.workspace import lfs_pointers, lfs_pull

_BUFFER = 1024 * 1024
_UNREACHABLE = PASSING | {"hub-offline"}


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of reading a folder again: a finding for each file that differs."""

    folder: Path
    manifest: Manifest
    findings: tuple[Finding, ...]


def verify(folder: Path, show: Show) -> Verified:
    """Hash every file in the manifest. The times of a sound folder are recorded again.

    Raises:
        TransferError: there is no manifest.
    """
    manifest = manifests.read(folder)
    if manifest is None:
        raise _no_manifest(folder)
    digests = hash_files([folder / file.path for file in manifest.files], show)
    findings, files = [], []
    for file in manifest.files:
        found = digests[folder / file.path]
        if (text := _difference(file, found)) is not None:
            findings.append(_finding(text, folder / file.path, repair_command(folder)))
        elif isinstance(found, str):
            files.append(stamped(folder, file, found))
    if not manifest.complete:
        findings.insert(
            0,
            _finding(
                f"the download of {manifest.repo} has not finished", folder, repair_command(folder)
            ),
        )
    if not findings and tuple(files) != manifest.files:
        manifest = replace(manifest, files=tuple(files))
        with contextlib.suppress(OSError):  # a read-only folder can still be verified
            manifest.write(folder)
    return Verified(folder, manifest, tuple(findings))


def _no_manifest(folder: Path) -> TransferError:
    if not folder.is_dir():
        return TransferError(
            "no-folder", f"there is no folder {folder}", where=str(folder), fix="iisft models"
        )
    if pointers := lfs_pointers(folder):
        return TransferError(
            "model-lfs-pointer",
            f"{pointers[0]} is a Git LFS pointer, not the file itself",
            where=str(folder),
            fix=lfs_pull(folder),
        )
    fix = f"iisft download --adopt {shlex.quote(str(folder))} records its digests"
    return TransferError("no-manifest", f"{folder} has no manifest", where=str(folder), fix=fix)


def adopt(
    folder: Path, repo: str | None, revision: str | None, sources: Sequence[str], show: Show
) -> Verified:
    """Write a manifest for a folder that iisft did not download.

    The files are compared with a hub's listing first. Where no hub can be reached the digests are
    recorded as they are, with a warning; without `sources` no hub is asked.

    Raises:
        CheckFailed: files are missing or differ from the hub's; nothing is recorded.
        TransferError, UsageError: there is nothing to adopt, or the model's name is unknown.
    """
    paths = _model_files(folder)
    if lfs_pointers(folder):
        raise _no_manifest(folder)
    name = repo or _recorded_repo(folder) or repo_by_place(folder)
    if name is None and sources:
        raise UsageError(
            "adopt-which",
            f"which model is {folder}?",
            fix=f"iisft download OWNER/NAME --adopt {shlex.quote(str(folder))}, or --source local",
        )
    listing, warnings = _listing(name or "", revision, sources) if sources else (None, ())
    if listing is not None:  # the person's own files are left out
        known = {file.path for file in listing.files}
        paths = [path for path in paths if path.relative_to(folder).as_posix() in known]
    files = [
        ManifestFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths
    ]
    digests = hash_files(paths, show)
    _require_right(folder, files, digests, listing)
    manifest = Manifest(
        source=listing.source if listing else LOCAL,
        endpoint=listing.endpoint if listing else "",
        repo=name or "",
        revision=listing.revision if listing else "",
        commit=listing.commit if listing else "",
        licence=licence_of(folder),
        complete=True,
        files=tuple(stamped(folder, file, str(digests[folder / file.path])) for file in files),
    )
    manifest.write(folder)
    return Verified(folder, manifest, warnings)


def _model_files(folder: Path) -> list[Path]:
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _belongs(path.relative_to(folder))
    ]
    if not paths:
        raise TransferError(
            "nothing-to-adopt", "it holds no model files", where=str(folder), fix="iisft models"
        )
    return paths


def _listing(
    name: str, revision: str | None, sources: Sequence[str]
) -> tuple[Listing | None, tuple[Finding, ...]]:
    """What a hub says of the model; None and a warning when no hub can be reached."""
    try:
        return Hubs(name, revision, sources).next(), ()
    except (TransferError, CheckFailed) as error:
        codes = (
            [finding.id for finding in error.errors]
            if isinstance(error, CheckFailed)
            else [error.code]
        )
        if not _UNREACHABLE.issuperset(codes):
            raise
        text = f"adopted as it is, not compared with any hub: {error.message}"
        return None, (Finding("adopted-unproven", text, where=error.where, severity="warn"),)


def hash_files(paths: Sequence[Path], show: Show) -> dict[Path, str | OSError]:
    """The sha256 of each file, or why it can't be read. Uses every core."""
    sizes = {path: path.stat().st_size for path in paths if path.is_file()}
    tally = Tally("checking", sum(sizes.values()), len(paths))
    longest_first = sorted(paths, key=lambda path: -sizes.get(path, 0))
    outcome = each(
        longest_first,
        lambda path, stop: _sha256(path, tally, stop),
        workers=_cores(),
        tally=tally,
        show=show,
    )
    answers: dict[Path, str | OSError] = dict(outcome.answers)
    for path, error in outcome.errors.items():
        if not isinstance(error, OSError):
            raise error
        answers[path] = error
    return answers


def is_right(path: Path, file: RemoteFile, sha256: str) -> bool:
    """Whether a file has the bytes that a hub promises, given the digest just computed."""
    if path.stat().st_size != file.size:
        return False
    if file.sha256 is not None:
        return sha256 == file.sha256
    return file.git_sha1 is None or _git_sha1(path, file.size) == file.git_sha1


def _require_right(
    folder: Path,
    files: Sequence[ManifestFile],
    digests: dict[Path, str | OSError],
    listing: Listing | None,
) -> None:
    unreadable = [
        _finding(str(digest), folder / file.path, "")
        for file in files
        if not isinstance(digest := digests[folder / file.path], str)
    ]
    errors = unreadable or (_strangers(folder, files, digests, listing) if listing else [])
    if errors:
        raise CheckFailed(errors)


def _strangers(
    folder: Path,
    files: Sequence[ManifestFile],
    digests: dict[Path, str | OSError],
    listing: Listing,
) -> list[Finding]:
    """Files that differ from the hub's, and needed ones that are missing."""
    promised = {file.path: file for file in listing.files}
    here = {file.path for file in files}
    command = (
        f"iisft download {listing.repo} --source {listing.source} --to {shlex.quote(str(folder))}"
    )
    wrong = [
        _finding(
            f"{file.path} differs from that of {listing.repo} at {listing.revision}",
            folder / file.path,
            f"{command} replaces it; --source local adopts the folder as it is",
        )
        for file in files
        if not is_right(folder / file.path, promised[file.path], str(digests[folder / file.path]))
    ]
    needed = [
        file.path for file in select(listing.files, allow_pickle=True) if not is_paper(file.path)
    ]
    missing = [
        _finding(
            f"{path} is missing", folder / path, f"{command} fetches it, and makes the manifest too"
        )
        for path in needed
        if path not in here
    ]
    return wrong + missing


def _difference(file: ManifestFile, found: str | OSError) -> str | None:
    if isinstance(found, FileNotFoundError):
        return f"{file.path} is missing"
    if isinstance(found, OSError):
        return f"{file.path} can't be read: {found.strerror}"
    if file.sha256 is not None and found != file.sha256:
        return (
            f"{file.path} has other bytes than were downloaded (sha256 {found[:12]}..., not "
            f"{file.sha256[:12]}...)"
        )
    return None


def _finding(text: str, path: Path, fix: str) -> Finding:
    return Finding(
        "model-file-changed", text, where=str(path), fix=fix, exit_code=ExitCode.TRANSFER
    )


def _sha256(path: Path, tally: Tally, stop: Stop) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        stop.check()
        digest.update(chunk)
        tally.advance(len(chunk))
    tally.file_done()
    return digest.hexdigest()


def _git_sha1(path: Path, size: int) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[memoryview]:
    """Views of one buffer: each is overwritten by the next."""
    buffer = memoryview(bytearray(_BUFFER))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            yield buffer[:count]


def _belongs(path: Path) -> bool:
    return is_safe_path(path.as_posix()) and not any(part.startswith(".") for part in path.parts)


def _recorded_repo(folder: Path) -> str:
    known = manifests.read(folder)
    return known.repo if known is not None else ""


def _cores() -> int:
    return len(os.sched_getaffinity(0))


assert OWN_FOLDER.startswith(".")  # _belongs leaves hidden folders out
