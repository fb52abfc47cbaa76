"""Where a machine's files lie: below a folder, or packed in memory. Paths are relative to the root,
without a leading slash.
"""

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


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
