"""Files that a person named on the command line: written whole, and over nothing unasked."""

import errno
import shlex
from pathlib import Path

from iisft import files
from iisft.cli import console
from iisft.errors import EnvironmentFault, IisftError, RunStateError

_FULL = (errno.ENOSPC, errno.EDQUOT)


def write(path: Path, content: str | bytes, error: type[IisftError], code: str) -> None:
    """Write a file; a person at a terminal is asked before one is replaced.

    Raises:
        RunStateError: the file exists.
        EnvironmentFault: the disk is full.
        IisftError: of the type `error` with that code: it can't be written.
    """
    raw = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    try:
        try:
            files.write_named(path, raw)
        except FileExistsError:
            if not console.confirmed(f"{path} exists. Replace it?"):
                raise exists(path) from None
            files.write_named(path, raw, replace=True)
    except OSError as fault:
        raise unwritable(path, fault, error, code) from fault


def exists(path: Path) -> RunStateError:
    return RunStateError(
        "file-exists",
        "the file exists",
        where=str(path),
        fix=f"choose another name, or: rm {shlex.quote(str(path))}",
    )


def unwritable(path: Path, fault: OSError, error: type[IisftError], code: str) -> IisftError:
    """A full disk is the machine's matter, whatever was to be written."""
    kind = EnvironmentFault if fault.errno in _FULL else error
    return kind(code, f"can't be written: {fault.strerror}", where=str(path))
