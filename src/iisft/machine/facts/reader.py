"""Reads a machine's files below a root and remembers what was read, so that the machine can be
packed and sent.
"""

import errno
import fnmatch
import os
from pathlib import Path

_LONGEST = 512 * 1024  # /proc/cpuinfo of two 22-core Xeons has 130 KB
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
# What sysfs answers for something that the driver or the card does not have.
_NOT_HERE = (
    errno.ENODEV,
    errno.ENXIO,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENODATA,
)


class Reader:
    """Paths are relative to the root: proc/cmdline. Nothing raises: what can't be read is empty.

    `files` is every file that was read, by path; `folders` every folder that was listed and the
    names that were seen in it; `unreadable` what is there but could not be read, with the reason.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.files: dict[str, str] = {}
        self.folders: set[str] = set()
        self.unreadable: dict[str, str] = {}

    @property
    def live(self) -> bool:
        """Whether this is the running machine and not a folder of files."""
        return self.root == Path("/")

    def text(self, path: str) -> str:
        """The file's text without blanks around it, "" when there is none."""
        try:
            with (self.root / path).open("rb") as stream:
                text = stream.read(_LONGEST).decode("utf-8", "replace").strip()
        except OSError as error:
            if error.errno not in (*_NOT_THERE, *_NOT_HERE):
                self.unreadable[path] = error.strerror or str(error)
            return ""
        self.files[path] = text
        return text

    def number(self, path: str) -> int | None:
        """A file that holds one integer, decimal or 0x...; None when it doesn't."""
        try:
            return int(self.text(path), 0)
        except ValueError:
            return None

    def names(self, folder: str, pattern: str = "*") -> list[str]:
        """Names in a folder that match; numbers in them sort as numbers (node 10 after node 2)."""
        try:
            found = os.listdir(self.root / folder)  # noqa: PTH208 - names alone
        except OSError as error:
            if error.errno not in _NOT_THERE:
                self.unreadable[folder] = error.strerror or str(error)
            return []
        chosen = [name for name in found if fnmatch.fnmatchcase(name, pattern)]
        self.folders |= {folder, *(f"{folder}/{name}" for name in chosen)}
        return sorted(chosen, key=lambda name: (len(name), name))

    def link(self, path: str) -> str:
        """The last part of what a symbolic link points to.

        Of a plain file (a packed link) its text; else "".
        """
        try:
            name = os.path.basename(os.readlink(self.root / path))  # noqa: PTH115, PTH119 - the target is not followed
        except OSError:
            return self.text(path) if (self.root / path).is_file() else ""
        self.files[path] = name
        return name

    def exists(self, path: str) -> bool:
        try:
            there = (self.root / path).exists()
        except OSError:
            return False
        if there and (self.root / path).is_dir():
            self.folders.add(path)
        elif there and path not in self.files:
            self.files[path] = ""
        return there
