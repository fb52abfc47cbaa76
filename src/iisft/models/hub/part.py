"""An unfinished file: named by its digest, hashed again when continued, renamed when right."""

import hashlib
import os
from pathlib import Path

from iisft import files
from iisft.models.folder.manifest import OWN_FOLDER
from iisft.models.hub.listing import RemoteFile
from iisft.models.hub.parallel import Stop, Tally

CHUNK = 256 * 1024  # the most that a kill can lose
_FLUSH = 32 * 1024 * 1024


def part_of(file: RemoteFile, folder: Path) -> Path:
    """The name holds the digest: a part is never continued with other bytes, and by any hub."""
    return folder / OWN_FOLDER / "parts" / f"{file.path}.{file.digest[:16] or 'unproven'}"


class Digests:
    """Running digests of one file: sha256, and git's sha1 where the hub gives nothing else."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._blob = None
        if file.sha256 is None and file.git_sha1 is not None:
            # git hashes a blob with this header (git-hash-object)
            self._blob = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)

    def update(self, chunk: bytes | memoryview) -> None:
        self._sha256.update(chunk)
        if self._blob is not None:
            self._blob.update(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def right(self) -> bool:
        """Whether these are the bytes that the hub promised; true where it gives no digest."""
        found = self._blob.hexdigest() if self._blob is not None else self.sha256
        return found == (self._file.digest or found)


class Part:
    """A context that holds one unfinished file open.

    `position` and `digests` cover all of its content.
    """

    def __init__(self, file: RemoteFile, folder: Path, tally: Tally) -> None:
        self._file, self._tally = file, tally
        self._path, self._target = part_of(file, folder), folder / file.path
        self.digests = Digests(file)
        self.position = 0

    def __enter__(self) -> "Part":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read_what_is_there(self, stop: Stop) -> None:
        """Continue from what an earlier process left. Raises Cancelled."""
        size = os.fstat(self._descriptor).st_size
        if (
            size > self._file.size or not self._file.digest
        ):  # without a digest it could belong to another commit
            os.ftruncate(self._descriptor, 0)
        while chunk := os.read(self._descriptor, 4 * CHUNK):
            stop.check()
            self.digests.update(chunk)
            self.position += len(chunk)
            self._tally.advance(len(chunk), moved=False)

    def append(self, chunk: bytes) -> None:
        """Write a chunk.

        Raises:
            OSError: the disk is full; position and digests still fit the last complete append.
        """
        view = memoryview(chunk)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self.digests.update(chunk)
        if self.position // _FLUSH != (self.position + len(chunk)) // _FLUSH:
            # starts write-back without waiting (posix_fadvise(2)), so that the final fsync is short
            os.posix_fadvise(self._descriptor, 0, self.position, os.POSIX_FADV_DONTNEED)
        self.position += len(chunk)
        self._tally.advance(len(chunk))

    def restart(self) -> None:
        """Throw away what has been written."""
        self._tally.advance(-self.position)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self.digests, self.position = Digests(self._file), 0

    def publish(self) -> None:
        """Give the file its final name, durably. The caller has checked `digests.right`."""
        os.fsync(self._descriptor)
        self._path.replace(self._target)
        files.sync_folder(self._target.parent)
