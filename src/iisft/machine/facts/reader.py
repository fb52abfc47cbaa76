"""Reads a machine's files below a root and remembers what was read, so that the machine can be
packed and sent.
"""

import errno
import fnmatch
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

_LONGEST_NUMBER = 40  # characters: 2**128 in decimal
_LONGEST = 512 * 1024  # /proc/cpuinfo of two 22-core Xeons has 130 KB
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
# What sysfs answers for something that the driver or the card does not have.
_UNSUPPORTED = (
    errno.ENODEV,
    errno.ENXIO,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EAGAIN,
    errno.EBUSY,
    errno.ENODATA,
)


class Place(Protocol):
    """What a Reader asks. A file that can't be read raises OSError."""

    @property
    def live(self) -> bool:
        """Whether this is the running machine."""
        ...

    def read(self, path: str, most: int) -> bytes: ...

    def names(self, folder: str) -> list[str]: ...

    def link(self, path: str) -> str | None:
        """The last part of what a symbolic link points to; None when it is not a link."""
        ...

    def kind(self, path: str) -> str:
        """file, folder, or "" for nothing."""
        ...


class Disk:
    """Files below a folder; the running machine's are those below /."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = os.path.realpath(root)

    @property
    def live(self) -> bool:
        return self._root == Path("/")

    def read(self, path: str, most: int) -> bytes:
        """A folder that somebody sent may hold a FIFO or links to this machine's own files."""
        place = self._root / path
        if not self.live and not self._inside(place):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
        descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
            return stream.read(most)

    def names(self, folder: str) -> list[str]:
        return os.listdir(self._root / folder)  # noqa: PTH208 - names alone

    def link(self, path: str) -> str | None:
        try:
            return os.path.basename(os.readlink(self._root / path))  # noqa: PTH115, PTH119 - the target is not followed
        except OSError:
            return None

    def kind(self, path: str) -> str:
        place = self._root / path
        try:
            return "folder" if place.is_dir() else "file" if place.exists() else ""
        except OSError:
            return ""

    def _inside(self, place: Path) -> bool:
        return os.path.commonpath([self._real, os.path.realpath(place)]) == self._real


class Packed:
    """Files in memory. Links were packed as files that hold the last part of their target."""

    live = False

    def __init__(self, contents: Mapping[str, bytes], folders: set[str]) -> None:
        self._contents = contents
        self._below: dict[str, set[str]] = {folder: set() for folder in folders}
        for path in (*contents, *folders):
            while "/" in path:
                folder, _, name = path.rpartition("/")
                self._below.setdefault(folder, set()).add(name)
                path = folder

    def read(self, path: str, most: int) -> bytes:
        if path not in self._contents:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._contents[path][:most]

    def names(self, folder: str) -> list[str]:
        if folder not in self._below:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
        return list(self._below[folder])

    def link(self, path: str) -> str | None:
        return None

    def kind(self, path: str) -> str:
        return "file" if path in self._contents else "folder" if path in self._below else ""


class Reader:
    """Paths are relative to the root: proc/cmdline. Nothing raises: what can't be read is empty.

    `files` is every file that was read, by path; `folders` every folder that was listed and the
    names that were seen in it; `unreadable` what is there but could not be read, with the reason.
    """

    def __init__(self, place: Path | Place = Path("/")) -> None:
        self._place: Place = Disk(place) if isinstance(place, Path) else place
        self.files: dict[str, str] = {}
        self.folders: set[str] = set()
        self.unreadable: dict[str, str] = {}

    @property
    def live(self) -> bool:
        """Whether this is the running machine and not a folder or an archive of files."""
        return self._place.live

    def text(self, path: str) -> str:
        """The file's text without blanks around it, "" when there is none."""
        try:
            text = self._place.read(path, _LONGEST).decode("utf-8", "replace").strip()
        except OSError as error:
            if error.errno not in (*_ABSENT, *_UNSUPPORTED):
                self.unreadable[path] = error.strerror or str(error)
            return ""
        self.files[path] = text
        return text

    def number(self, path: str) -> int | None:
        """A file that holds one integer, decimal or 0x...; None when it doesn't."""
        text = self.text(path)
        try:
            return int(text, 0) if len(text) <= _LONGEST_NUMBER else None
        except ValueError:
            return None

    def names(self, folder: str, pattern: str = "*") -> list[str]:
        """Names in a folder that match; numbers in them sort as numbers (node 10 after node 2)."""
        try:
            found = self._place.names(folder)
        except OSError as error:
            if error.errno not in _ABSENT:
                self.unreadable[folder] = error.strerror or str(error)
            return []
        chosen = [name for name in found if fnmatch.fnmatchcase(name, pattern)]
        self.folders |= {folder, *(f"{folder}/{name}" for name in chosen)}
        return sorted(chosen, key=lambda name: (len(name), name))

    def link(self, path: str) -> str:
        """The last part of what a symbolic link points to.

        Of a plain file (a packed link) its text; else "".
        """
        name = self._place.link(path)
        if name is None:
            return self.text(path) if self._place.kind(path) == "file" else ""
        self.files[path] = name
        return name

    def exists(self, path: str) -> bool:
        kind = self._place.kind(path)
        if kind == "folder":
            self.folders.add(path)
        elif kind and path not in self.files:
            self.files[path] = ""
        return bool(kind)
