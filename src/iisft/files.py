"""Files that others may read while they are written, or may have torn: written by rename."""

import contextlib
import errno
import fcntl
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from iisft.json_values import SURROGATES, json_text, parse_json

LARGEST = 64 * 2**20
"""Bytes of a file that iisft or a hub wrote: the largest known index of a model has 8 MiB."""

_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_MOST_AT_ONCE = 4 * LARGEST  # of a log or of events; the next call goes on there


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Replace `path` with a complete file or not at all: temporary name, fsync, rename.

    Raises:
        OSError: the folder is missing or read-only, or the disk is full; `path` is unchanged.
    """
    with atomic_writer(path) as stream:
        stream.write(content)


def write_text_atomically(path: Path, text: str) -> None:
    """write_bytes_atomically for UTF-8 text."""
    write_bytes_atomically(path, SURROGATES.sub("\ufffd", text).encode("utf-8"))


def write_json_atomically(path: Path, value: Any) -> None:
    """write_text_atomically for one JSON document, indented for people."""
    write_text_atomically(path, json_text(value, indent=2) + "\n")


def write_named(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write what a person asked for to the place that they named.

    A new name becomes a whole file or none. Of what is there, only a regular file is ever replaced;
    a device or a pipe is written to, and `-` is standard output.

    Raises:
        FileExistsError: a file is there, and nobody said that it may be replaced.
        OSError: it can't be written.
    """
    if str(path) in _STDOUT:
        sys.stdout.write(content.decode("utf-8", "replace"))
        sys.stdout.flush()
        return
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        write_bytes_atomically(target, content)
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        os.set_blocking(descriptor, True)
        with open(descriptor, "wb") as stream:  # noqa: PTH123 - a descriptor, not a path
            stream.write(content)
    elif replace:
        write_bytes_atomically(target, content)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream that becomes `path` when the block succeeds, and otherwise leaves nothing."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            # Renamed before its bytes are on the disk, a file can be empty after a power cut: ext4
            # allocates late (mount option auto_da_alloc guards some cases only, ext4(5)).
            os.fsync(stream.fileno())
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_into_place(temporary: Path, path: Path) -> None:
    """Rename a synced temporary file to `path`, with the usual permissions."""
    temporary.chmod(0o666 & ~_umask())  # mkstemp(3) leaves it to its owner alone
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
    # O_APPEND: each write(2) goes to the end as it is then, whoever else writes. Not so on NFS
    # (open(2)), which is why there is a lock as well.
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


def open_regular(path: Path | str) -> io.BufferedReader:
    """A file open for reading, without waiting for anybody.

    Raises:
        OSError: it can't be read, or is a FIFO, a device, a socket or a folder.
    """
    # O_NONBLOCK: opening a FIFO waits for its other end (fifo(7)). What was opened is judged, not
    # the name: that could mean another file a moment later.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")  # noqa: PTH123 - a descriptor, not a path
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, f"{_kind(mode)}, not a regular file", str(path))


def lines_of(stream: IO[bytes], most: int = LARGEST) -> Iterator[bytes]:
    """The lines of an open file, each with its end.

    Raises:
        OSError: a line is longer than `most` bytes: nobody wrote that.
    """
    while line := stream.readline(most + 1):
        if len(line) > most:
            raise OSError(errno.EFBIG, f"a line is longer than {_mib(most)}", str(stream.name))
        yield line


def read_bytes(path: Path | str, most: int = LARGEST) -> bytes:
    """A whole regular file of at most so many bytes.

    Raises:
        OSError: it can't be read, is not a regular file, or is larger.
    """
    with open_regular(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than the {_mib(most)} that such a file has", str(path))
    return content


def read_text(path: Path | str, most: int = LARGEST) -> str:
    """read_bytes for UTF-8 text; a byte order mark at its begin is left out.

    Raises:
        OSError: as read_bytes.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def read_json(path: Path | str, most: int = LARGEST) -> Any | None:
    """The JSON document at `path`.

    None when it is missing, unreadable, torn, not JSON, not a regular file, too large or too deep.
    """
    try:
        return parse_json(read_bytes(path, most))
    except (OSError, ValueError):
        return None


def read_json_object(path: Path | str, most: int = LARGEST) -> dict[str, Any] | None:
    """read_json for files that must hold an object."""
    value = read_json(path, most)
    return value if isinstance(value, dict) else None


def sha256_of(path: Path) -> str:
    """The hex digest of a file; "" when it can't be read, which equals no digest."""
    try:
        with open_regular(path) as stream:
            import hashlib  # loads OpenSSL: 4 MB that `--help` has no use for

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
    # O_CLOEXEC: the lock belongs to the open file, and a child that inherited it would keep it
    # (flock(2)). fcntl's locks would be lost as soon as anything here closed the same file.
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
        with open_regular(path) as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - tail_bytes)
            stream.seek(start)
            lines = stream.read(tail_bytes).replace(b"\r", b"\n").split(b"\n")
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
            with open_regular(self.path) as stream:
                if stream.seek(0, os.SEEK_END) < self._offset:  # it was made again
                    self._offset, self._rest = 0, b""
                stream.seek(self._offset)
                chunk = stream.read(_MOST_AT_ONCE)
        except OSError:
            return []
        self._offset += len(chunk)
        *lines, self._rest = (self._rest + chunk).replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) > LARGEST:  # no line that anybody wrote
            self._rest = b""
        return [line.decode("utf-8", "replace") for line in lines if line.strip()]


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _mib(size: int) -> str:
    return f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 1024} KiB"


def _umask() -> int:
    mask = os.umask(0)  # umask(2) has no way to read it without setting it
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    # fsync of the file alone leaves the folder's entry of it in memory (fsync(2))
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems can't sync a folder
    finally:
        os.close(descriptor)
