"""`iisft download`: a complete model folder from whichever hub answers.

No file gets its final name before every byte of it is verified.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iisft.errors import CheckFailed, ExitCode, Finding, TransferError
from iisft.models.folder import manifest as manifests
from iisft.models.folder.checkpoint import checkpoint_findings, code_files
from iisft.models.folder.licence import licence_of
from iisft.models.folder.manifest import OWN_FOLDER, Manifest, ManifestFile, stamped
from iisft.models.hub import by_hub, listing, verify
from iisft.models.hub.hubs import Hubs, transfer_finding
from iisft.models.hub.listing import Listing, RemoteFile
from iisft.models.hub.metadata import HUGGINGFACE, MODELSCOPE, NAMES
from iisft.models.hub.parallel import Show, Tally, each
from iisft.models.hub.place import SPARE_BYTES, is_local, locked, require_space, writing
from iisft.models.hub.transfer import LOCAL_FAULTS, PAUSES_S, Job, fetch

WORKERS = 4
PATIENCE_WITH_ANOTHER_HUB = 3  # failed attempts before the other hub is asked


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for.

    `sources` are in order of preference; several are asked at the same time.
    """

    repo: str
    folder: Path
    sources: tuple[str, ...] = (HUGGINGFACE, MODELSCOPE)
    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_pickle: bool = False
    by_hub: bool = False


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A complete folder. `fetched`: bytes of the files that came over the network."""

    folder: Path
    manifest: Manifest
    fetched: int
    findings: tuple[Finding, ...]


def download(request: Request, show: Show) -> Downloaded:
    """Make a folder match a hub's listing, fetching only what is missing or wrong.

    Raises:
        TransferError, CheckFailed: it can't be finished; what has arrived is kept, and the next
            call continues from there.
    """
    known = manifests.read(request.folder)
    preferred = known.source if known is not None and known.repo == request.repo else ""
    if known is not None and known.repo not in ("", request.repo):
        raise TransferError(
            "folder-taken",
            f"the folder holds {known.repo}: two models in one folder would be loaded as one",
            where=str(request.folder),
            fix="another folder: --to DIR",
        )
    hubs = Hubs(request.repo, request.revision, request.sources, preferred)
    notes: list[Finding] = []
    while True:
        found = hubs.next()
        try:
            wanted = listing.select(
                found.files, request.include, request.exclude, allow_pickle=request.allow_pickle
            )
            with locked(request.folder):  # only now is there anything to write
                return _complete(request, found, wanted, hubs, show, notes)
        except (TransferError, CheckFailed) as error:
            if is_local(error) or not hubs.more:
                raise
            hubs.failed(error)
            text = (
                f"{NAMES[found.source]} could not finish ({error.message}); continuing with "
                "the other hub"
            )
            notes.append(Finding("other-hub", text, severity="warn", exit_code=ExitCode.TRANSFER))


def _complete(
    request: Request,
    found: Listing,
    wanted: Sequence[RemoteFile],
    hubs: Hubs,
    show: Show,
    notes: list[Finding],
) -> Downloaded:
    folder = request.folder
    earlier = manifests.read(folder)
    entries = _already_right(folder, wanted, show)
    missing = [file for file in wanted if file.path not in entries]
    if missing:
        with writing(folder):
            require_space(folder, missing)
            planned = [
                entries.get(file.path, ManifestFile(file.path, file.size, file.sha256))
                for file in wanted
            ]
            _manifest(found, folder, [*planned, *_others(earlier, wanted)], complete=False).write(
                folder
            )
            notes += _keep_old(folder, missing)
        digests = _fetch(request, found, missing, hubs, show)
    with writing(folder):
        for file in missing:
            entries[file.path] = stamped(
                folder, ManifestFile(file.path, file.size), digests[file.path]
            )
        others = _others(earlier, wanted)
        entries |= _still_right(others, found)
        notes += _remove_outdated(folder, others, found)
        manifest = _manifest(
            found, folder, [entries[path] for path in sorted(entries)], complete=True
        )
        manifest.write(folder)
        shutil.rmtree(folder / OWN_FOLDER / "parts", ignore_errors=True)
        shutil.rmtree(folder / OWN_FOLDER / "hub", ignore_errors=True)
    fetched = sum(file.size for file in missing)
    return Downloaded(folder, manifest, fetched, (*notes, *_remarks(folder, wanted)))


def _fetch(
    request: Request, found: Listing, missing: Sequence[RemoteFile], hubs: Hubs, show: Show
) -> dict[str, str]:
    """Put the missing files in place; path -> sha256."""
    if request.by_hub:
        return by_hub.fetch(found, missing, request.folder, show)
    tally = Tally("downloading", sum(file.size for file in missing), len(missing))
    jobs = [
        Job(
            file,
            request.folder,
            found.headers,
            lambda: PATIENCE_WITH_ANOTHER_HUB if hubs.more else len(PAUSES_S),
        )
        # small files first: a broken config.json shows before 15 GB have come
        for file in sorted(missing, key=lambda file: (file.size > SPARE_BYTES, -file.size))
    ]
    outcome = each(
        jobs,
        lambda job, stop: fetch(job, tally, stop),
        workers=WORKERS,
        tally=tally,
        show=show,
        fatal=lambda error: isinstance(error, TransferError) and error.code in LOCAL_FAULTS,
    )
    for error in outcome.errors.values():
        if not isinstance(error, TransferError):
            raise error
    raise_together([error for error in outcome.errors.values() if isinstance(error, TransferError)])
    return {job.file.path: digest for job, digest in outcome.answers.items()}


def raise_together(errors: Sequence[TransferError]) -> None:
    """One error as itself, several as findings of one; nothing when there is none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise CheckFailed([transfer_finding(error) for error in errors])


def _already_right(
    folder: Path, wanted: Sequence[RemoteFile], show: Show
) -> dict[str, ManifestFile]:
    """Files that match the listing byte for byte; time stamps prove nothing."""
    here = [file for file in wanted if (folder / file.path).is_file()]
    candidates = [file for file in here if (folder / file.path).stat().st_size == file.size]
    digests = (
        verify.hash_files([folder / file.path for file in candidates], show) if candidates else {}
    )
    right = {}
    for file in candidates:
        digest = digests[folder / file.path]
        if isinstance(digest, str) and verify.is_right(folder / file.path, file, digest):
            right[file.path] = stamped(folder, ManifestFile(file.path, file.size), digest)
    return right


def _keep_old(folder: Path, missing: Sequence[RemoteFile]) -> Iterator[Finding]:
    """Set aside files that will be replaced and are not weights: they may be the person's own."""
    for file in missing:
        path = folder / file.path
        if (
            path.is_file()
            and not path.name.endswith(".safetensors")
            and not listing.is_pickle(path.name)
        ):
            kept = folder / OWN_FOLDER / "replaced" / file.path
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, kept)
            text = f"{file.path} was not the hub's: replaced, the old one is {kept}"
            yield Finding("file-replaced", text, where=str(path), severity="warn")


def _others(earlier: Manifest | None, wanted: Sequence[RemoteFile]) -> list[ManifestFile]:
    """What an earlier download fetched and this one does not ask for."""
    asked = {file.path for file in wanted}
    return [
        file
        for file in (earlier.files if earlier else ())
        if file.mtime_ns and file.path not in asked
    ]


def _still_right(others: Sequence[ManifestFile], found: Listing) -> dict[str, ManifestFile]:
    """Files of other globs that this commit has unchanged: they stay in the manifest."""
    digests = {file.path: file.sha256 for file in found.files if file.sha256}
    return {
        file.path: file for file in others if file.sha256 and digests.get(file.path) == file.sha256
    }


def _remove_outdated(
    folder: Path, others: Sequence[ManifestFile], found: Listing
) -> Iterator[Finding]:
    """Remove untouched weights that this commit no longer has: a loader could pick them up."""
    listed = {file.path for file in found.files}
    for file in others:
        path = folder / file.path
        if file.path in listed or not path.name.endswith(".safetensors") or not path.is_file():
            continue
        if (path.stat().st_size, path.stat().st_mtime_ns) == (file.size, file.mtime_ns):
            path.unlink()
            text = f"{file.path} was removed: the repository no longer has it"
            yield Finding("file-removed", text, where=str(path), severity="warn")


def _manifest(
    found: Listing, folder: Path, entries: Sequence[ManifestFile], *, complete: bool
) -> Manifest:
    return Manifest(
        source=found.source,
        endpoint=found.endpoint,
        repo=found.repo,
        revision=found.revision,
        commit=found.commit,
        licence=licence_of(folder) if complete else "",
        complete=complete,
        files=tuple(entries),
    )


def _remarks(folder: Path, wanted: Sequence[RemoteFile]) -> Iterator[Finding]:
    """What a person should know about a folder that arrived as promised."""
    unproven = [file.path for file in wanted if not file.digest]
    if unproven:
        text = f"the hub gives no digest for {', '.join(unproven)}: only the size was compared"
        yield Finding("unproven", text, severity="warn")
    for finding in checkpoint_findings(folder):
        yield replace(finding, fix="", severity="warn")
    if code := code_files(folder):
        text = (
            f"the model comes with its own code: {', '.join(code)}. None of it runs unless a "
            "preset trusts it"
        )
        fix = "read it; then --set model.trust_remote_code=true"
        yield Finding("model-code", text, where=str(folder), fix=fix, severity="info")
