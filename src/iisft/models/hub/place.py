"""The folder that a download writes into: locked, with room for what is missing."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from iisft import files
from iisft.errors import CheckFailed, TransferError
from iisft.models.folder.manifest import OWN_FOLDER, gb
from iisft.models.hub.listing import RemoteFile
from iisft.models.hub.part import part_of
from iisft.models.hub.transfer import LOCAL_FAULTS, write_error

SPARE_BYTES = 64_000_000  # for the manifest, and whatever else writes in the meantime


def require_space(folder: Path, missing: Sequence[RemoteFile]) -> None:
    """Raises TransferError before the first byte when the files don't fit on the disk."""
    needed = 0
    for file in missing:
        part = part_of(file, folder)
        needed += file.size - min(part.stat().st_size if part.is_file() else 0, file.size)
    free = shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise TransferError(
            "disk-full",
            f"{gb(needed)} are still to be fetched, {gb(free)} are free",
            where=str(folder),
            fix="free some space, or use another disk with --to; nothing was fetched",
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two downloads into one folder would tear each other's parts."""
    with contextlib.ExitStack() as stack:
        with writing(folder):
            (folder / OWN_FOLDER).mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(files.exclusive_lock(folder / OWN_FOLDER / "lock"))
            except BlockingIOError:
                raise TransferError(
                    "download-running",
                    "another iisft is downloading into this folder",
                    where=str(folder),
                    fix="wait for it, or end it: the bytes it has are kept",
                ) from None
        yield


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(error, folder) from error


def is_local(error: TransferError | CheckFailed) -> bool:
    found = (
        [finding.id for finding in error.errors] if isinstance(error, CheckFailed) else [error.code]
    )
    return any(code in LOCAL_FAULTS for code in found)
