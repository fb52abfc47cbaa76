"""Files that others may read while they are written, or may have torn: written by rename."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Replace `path` with a complete file or not at all: temporary name, fsync, rename.

    Raises:
        OSError: the folder is missing or read-only, or the disk is full; `path` is unchanged.
    """
    with atomic_writer(path) as stream:
        stream.write(content)


def write_text_atomically(path: Path, text: str) -> None:
    """write_bytes_atomically for UTF-8 text."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """write_text_atomically for one JSON document, indented for people."""
    write_text_atomically(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream that becomes `path` when the block succeeds, and otherwise leaves nothing."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a synced temporary file to `path`, with the usual permissions."""
    temporary.chmod(0o666 & ~_umask())
    temporary.replace(path)
    sync_folder(path.parent)


def make_durable(folder: Path) -> None:
    """Sync what another program wrote into `folder`, and give it the usual permissions.

    Raises:
        OSError: the disk is full.
    """
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        path.chmod(0o666 & ~_umask())
    sync_folder(folder)


def append_line(path: Path, line: str, *, durably: bool = False) -> None:
    """Append one line whole or not at all, so that concurrent readers never see a part of it.

    A last line torn by a power cut is ended first, so that it doesn't spoil this one.
    `durably`: return only when the line is on the disk.

    Raises:
        OSError: the disk is full, or the file can't be written.
    """
    content = line.rstrip("\n").encode("utf-8") + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # else one being written would look torn
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            content = b"\n" + content
        if os.write(descriptor, content) != len(content):  # the disk became full in the middle
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durably:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path | str) -> Any | None:
    """The JSON document at `path`, or None when it is missing, unreadable, torn or not JSON."""
    try:
        with open(path, "rb") as stream:  # noqa: PTH123 - a list of 10,000 runs pays for each Path object
            return json.loads(stream.read())
    except (OSError, ValueError):
        return None


def read_json_object(path: Path | str) -> dict[str, Any] | None:
    """read_json for a file that must hold an object."""
    value = read_json(path)
    return value if isinstance(value, dict) else None


def sha256_of(path: Path) -> str:
    """The hex digest of a file; "" when it can't be read, which equals no digest."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold `path` as a lock for the block; it ends with the process, however that ends.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file can't be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # a network file system without locks
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield
    finally:
        os.close(descriptor)


def last_lines(path: Path, tail_bytes: int = 64 * 1024) -> list[str]:
    """The complete lines in the last bytes of a file; none when it can't be read."""
    try:
        with path.open("rb") as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - tail_bytes)
            stream.seek(start)
            lines = stream.read().replace(b"\r", b"\n").split(b"\n")
    except OSError:
        return []
    return [line.decode("utf-8", "replace") for line in lines[1 if start else 0 :] if line.strip()]


class LineFollower:
    """Reads the complete lines added to a growing file since the last call."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path = path
        self._offset = offset
        self._rest = b""

    def read(self) -> list[str]:
        """New complete lines without line ends; a carriage return (progress bars) ends one too."""
        try:
            with self.path.open("rb") as stream:
                if stream.seek(0, os.SEEK_END) < self._offset:  # it was replaced
                    self._offset, self._rest = 0, b""
                stream.seek(self._offset)
                chunk = stream.read()
        except OSError:
            return []
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines if line.strip()]


def _umask() -> int:
    mask = os.umask(0)  # umask(2) has no way to read it without setting it
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems can't sync a folder
    finally:
        os.close(descriptor)
