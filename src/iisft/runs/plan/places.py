"""Whether the place where runs lie can hold one: writable, with links, with room."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from iisft.errors import EnvironmentFault, ExitCode, Finding
from iisft.estimate import disk
from iisft.estimate.forecast import Forecast
from iisft.estimate.memory import GIB
from iisft.models.folder.checkpoint import Checkpoint
from iisft.presets.schema import Preset

# What a file system answers that has no links: Linux' exfat and vfat EPERM, FUSE and shares others.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def disk_findings(
    preset: Preset, checkpoint: Checkpoint | None, forecast: Forecast | None, runs: Path
) -> Iterator[Finding]:
    """A read-only place, and too little room for the checkpoints that lie there at once."""
    place = runs
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        yield Finding(
            "output-read-only",
            "runs can't be written here",
            where=str(place),
            fix="export IISFT_HOME=/a/writable/folder",
            exit_code=ExitCode.ENVIRONMENT,
        )
        return
    yield from _links(place)
    if checkpoint is None:
        return
    if forecast is not None:
        needed = forecast.disk_gib
    else:
        lora = preset.lora
        parameters = disk.adapter_parameters(checkpoint.tensors, lora.rank, lora.target)
        needed = disk.run_bytes(parameters, preset.save.keep) / GIB
    free = shutil.disk_usage(place).free / GIB
    if free < needed:
        yield Finding(
            "disk-space",
            f"{preset.save.keep} checkpoints need {needed:.1f} GiB with the rows' copies, "
            f"{free:.1f} GiB are free",
            where=str(place),
            fix=f"free some space, or --set save.keep={preset.save.fewest}",
            exit_code=ExitCode.ENVIRONMENT,
        )


def _links(place: Path) -> Iterator[Finding]:
    """A run loads its model through links; exFAT and FAT have none, nor have some shares."""
    link = place / f".iisft-link-{os.getpid()}"
    try:
        link.symlink_to("nothing")
        link.unlink()
    except OSError as error:
        if error.errno in _NO_LINKS:
            yield _without_links(place)


def _without_links(place: Path) -> Finding:
    kind = _file_system(place)
    return Finding(
        "no-links",
        f"the file system here{f' ({kind})' if kind else ''} has no symbolic links, which a run "
        "needs for its model's files",
        where=str(place),
        fix="export IISFT_HOME to a folder on a Linux file system (ext4, xfs, btrfs; below WSL "
        "under /home, not /mnt); models may stay where they are: --model DIR",
        exit_code=ExitCode.ENVIRONMENT,
    )


def unwritable(place: Path, error: OSError) -> EnvironmentFault:
    """A run folder that could not be made."""
    if error.errno in _NO_LINKS and (found := next(_links(place), None)) is not None:
        return EnvironmentFault.of(found)
    return EnvironmentFault(
        "output-unwritable",
        f"the run folder can't be written: {error.strerror}",
        where=str(place),
        fix="free some space, or export IISFT_HOME=/a/writable/folder",
    )


def _file_system(place: Path) -> str:
    """The kind of file system at a place, of the mount point that is nearest to it."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    found = {
        point.replace("\\040", " "): kind
        for _, point, kind, *_ in (line.split(" ") for line in lines if line.count(" ") >= 3)
    }
    at = place.resolve()
    return next((found[str(one)] for one in (at, *at.parents) if str(one) in found), "")
