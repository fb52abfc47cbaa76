"""Fetches one file: resumed from its part, hashed on the way, published when it is right."""

import contextlib
import errno
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from iisft.errors import TransferError
from iisft.models.hub.listing import RemoteFile
from iisft.models.hub.network import (
    CONNECT_S,
    PASSING,
    READ_S,
    connection_error,
    origin,
    shown,
    status_error,
)
from iisft.models.hub.parallel import Stop, Tally
from iisft.models.hub.part import CHUNK, Part

if TYPE_CHECKING:
    import requests

# between attempts that bring nothing; four minutes in all
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0, 60.0)
_PROGRESS = 1_000_000  # bytes after which an attempt counts as a success
_REDIRECTS = 5
_LONGEST_WAIT_S = 300.0

_of_thread = threading.local()

# What another hub can't fix either.
LOCAL_FAULTS = frozenset({"disk-full", "write-failed", "download-running"})


@dataclass(frozen=True, slots=True)
class Job:
    """One file to fetch.

    `headers` go only to the host of its URL; `patience()` is how many of PAUSES_S to take.
    """

    file: RemoteFile
    folder: Path
    headers: Mapping[str, str]
    patience: Callable[[], int]

    def __hash__(self) -> int:
        return hash(self.file.path)


def fetch(job: Job, tally: Tally, stop: Stop) -> str:
    """Put one file in place and return its sha256.

    Raises:
        TransferError: it can't be fetched; what has arrived stays in the part unless its digest
            is wrong.
        Cancelled: the work was told to stop.
    """
    try:
        with Part(job.file, job.folder, tally) as part:
            part.read_what_is_there(stop)
            for last in (False, True):
                _receive(job, part, tally, stop)
                if part.digests.right:
                    break
                # a power cut may have torn what an earlier process wrote: start over once
                part.restart()
                if last:
                    raise _wrong_digest(job)
                tally.note(f"{job.file.path}: wrong digest, fetching it again")
            part.publish()
            tally.file_done()
            return part.digests.sha256
    except OSError as error:
        raise write_error(error, job.folder / job.file.path) from error


def write_error(error: OSError, path: Path) -> TransferError:
    """A disk that is full or can't be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TransferError(
            "disk-full",
            f"the disk is full ({error.strerror})",
            where=str(path),
            fix="free some space, or use another folder with --to; run the command again: it "
            "continues where it stopped",
        )
    return TransferError(
        "write-failed",
        f"can't be written: {error.strerror or error}",
        where=error.filename or str(path),
        fix="check the folder's permissions, or use another one with --to",
    )


def _wrong_digest(job: Job) -> TransferError:
    return TransferError(
        "wrong-digest",
        f"{job.file.path}: the bytes received differed from the hub's listing twice",
        where=shown(job.file.url),
        fix="the hub, a mirror or a proxy serves a broken or changing copy: try another --source; "
        "nothing was replaced",
    )


def _receive(job: Job, part: Part, tally: Tally, stop: Stop) -> None:
    """Try until the part is complete. The count of failures restarts after every progress."""
    failures, furthest = 0, part.position
    while part.position < job.file.size:
        stop.check()
        try:
            _attempt(job, part, stop)
        except _Interrupted as interrupted:
            if part.position >= min(furthest + _PROGRESS, job.file.size):
                failures = 0
            furthest = max(furthest, part.position)
            if failures >= min(job.patience(), interrupted.at_most):
                raise interrupted.error from interrupted
            pause = min(max(PAUSES_S[failures], interrupted.wait_s), _LONGEST_WAIT_S)
            failures += 1
            tally.note(f"{job.file.path}: {interrupted.error.message}; again in {pause:g} s")
            stop.pause(pause)


class _Interrupted(Exception):
    """An attempt that failed and may be repeated, at most `at_most` times."""

    def __init__(
        self, error: TransferError, wait_s: float = 0.0, at_most: int = len(PAUSES_S)
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.wait_s = wait_s
        self.at_most = at_most


def _attempt(job: Job, part: Part, stop: Stop) -> None:
    """One request, from the part's position to the end of the file or of the connection."""
    import requests
    import urllib3

    place = urlsplit(job.file.url).netloc.rpartition("@")[2]
    try:
        response, place = _open(job, part.position)
    except requests.RequestException as error:
        raise _passing(connection_error(error, place)) from error
    with contextlib.closing(response):
        _check_head(job, part, response, place)
        # an early end is reported below, with what is missing
        response.raw.enforce_content_length = False
        while part.position < job.file.size:
            stop.check()
            try:
                # read1 returns what has arrived; read would wait for a full chunk
                chunk = response.raw.read1(CHUNK, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise _passing(connection_error(error, place)) from error
            if not chunk:
                text = f"{place} ended the connection {job.file.size - part.position} bytes early"
                raise _Interrupted(
                    TransferError(
                        "hub-unreachable", text, where=shown(job.file.url), fix="run it again"
                    )
                )
            if part.position + len(chunk) > job.file.size:
                raise _other_size(job, place, "more bytes")
            part.append(chunk)
        response.raw.release_conn()  # for the thread's next file


def _passing(error: TransferError) -> Exception:
    return _Interrupted(error) if error.code in PASSING else error


def _open(job: Job, position: int) -> tuple["requests.Response", str]:
    """Ask for the rest of the file.

    Redirects are followed here and not by requests: the token goes to no host but the hub's.
    """
    session, url, home = _session(), job.file.url, origin(job.file.url)
    # a compressed body would have neither the listing's length nor ranges of the file
    headers = {"Accept-Encoding": "identity", "User-Agent": "iisft"}
    if position:
        headers["Range"] = f"bytes={position}-"
    for _ in range(_REDIRECTS):
        own = job.headers if origin(url) == home else {}
        response = session.get(
            url,
            headers={**headers, **own},
            stream=True,
            allow_redirects=False,
            timeout=(CONNECT_S, READ_S),
        )
        place = urlsplit(url).netloc.rpartition("@")[2]
        if not response.is_redirect:
            return response, place
        response.close()
        following = urljoin(url, response.headers["location"])
        scheme = urlsplit(following).scheme
        if scheme not in ("http", "https") or (
            urlsplit(url).scheme == "https" and scheme != "https"
        ):
            raise _bad_redirect(place, f"to {shown(following)}, which is not https")
        url = following
    raise _bad_redirect(place, f"more than {_REDIRECTS} times")


def _bad_redirect(place: str, text: str) -> TransferError:
    return TransferError(
        "hub-redirect", f"{place} redirects {text}", where=place, fix="try another --source"
    )


def _check_head(job: Job, part: Part, response: "requests.Response", place: str) -> None:
    """Check that the body continues the part; a server that ignores Range starts it over."""
    status, size = response.status_code, job.file.size
    if status >= 400:
        error = status_error(status, place, job.file.path)
        elsewhere = place != urlsplit(job.file.url).netloc.rpartition("@")[2]
        if status == 416:
            part.restart()
        if error.code in PASSING or status in (408, 416):
            raise _Interrupted(error, _retry_after(response))
        if elsewhere and status == 403:  # a signed URL expired: the hub will give a new one
            raise _Interrupted(error, at_most=2)
        raise error
    if status == 206 and part.position:
        span, _, total = (
            response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        )
        if total not in ("*", str(size)):
            raise _other_size(job, place, f"{total or 'an unknown number of'} bytes")
        if span.partition("-")[0] != str(part.position):
            part.restart()
            text = f"{place} sends other bytes than were asked for"
            raise _Interrupted(
                TransferError(
                    "hub-error", text, where=shown(job.file.url), fix="try another --source"
                )
            )
        return
    if status not in (200, 206):
        raise status_error(status, place, job.file.path)
    if part.position:
        part.restart()
    announced = response.headers.get("Content-Length")
    if announced is not None and announced != str(size):
        raise _other_size(job, place, f"{announced} bytes")


def _retry_after(response: "requests.Response") -> float:
    try:
        return float(response.headers.get("Retry-After", ""))
    except ValueError:
        return 0.0  # absent, or a date


def _other_size(job: Job, place: str, found: str) -> TransferError:
    return TransferError(
        "wrong-size",
        f"{job.file.path}: {place} sends {found}, its listing says {job.file.size}",
        where=shown(job.file.url),
        fix="the hub, a mirror or a proxy serves a broken copy: try another --source; nothing was "
        "replaced",
    )


def _session() -> "requests.Session":
    """This thread's session: proxies and certificates from the environment, no cookies.

    requests lets a password from ~/.netrc replace the Authorization header
    (Session.prepare_request); an `auth` that does nothing keeps the header.
    """
    from http.cookiejar import DefaultCookiePolicy

    import requests

    session: requests.Session | None = getattr(_of_thread, "session", None)
    if session is None:
        session = _of_thread.session = requests.Session()
        session.auth = lambda request: request
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session
