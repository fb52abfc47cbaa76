"""Both hubs asked at the same time, each in its own thread."""

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from iisft.errors import CheckFailed, ExitCode, Finding, IisftError, TransferError, UsageError
from iisft.models.hub.listing import Listing
from iisft.models.hub.metadata import (
    ANSWER_S,
    HUGGINGFACE,
    OTHER_HUB,
    endpoint_of,
    huggingface_listing,
    modelscope_listing,
    place_of,
)
from iisft.models.hub.network import PASSING, agree_on_certificates, require_name

DEADLINE_S = 30.0  # for one hub's whole listing
_PAUSES_S = (1.0, 3.0)  # between attempts
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


class Hubs:
    """Asks all hubs at the same time; `next` gives their listings in the order they answer.

    `preferred` may answer a little later than the first: a folder stays with its hub.
    """

    def __init__(
        self, repo: str, revision: str | None, sources: Sequence[str], preferred: str = ""
    ) -> None:
        # the id becomes a path below models/ and part of a URL
        if not _REPO.fullmatch(repo) or ".." in repo:
            raise UsageError(
                "model-id",
                f"{repo!r} is not a model id",
                fix="OWNER/NAME as the hub's page shows it",
            )
        self._answers: queue.SimpleQueue[tuple[str, Listing | TransferError]] = queue.SimpleQueue()
        self._waiting = list(sources)
        self._ready: list[Listing] = []
        self._errors: list[IisftError] = []
        self._deadline = time.monotonic() + DEADLINE_S
        self._preferred, self._courtesy = preferred, time.monotonic() + ANSWER_S
        agree_on_certificates()
        for source in sources:
            threading.Thread(target=self._ask, args=(source, repo, revision), daemon=True).start()

    def next(self) -> Listing:
        """The next listing.

        Raises:
            TransferError, CheckFailed: no hub is left; it carries the reasons of all of them.
        """
        while self._waiting and (not self._ready or self._preferred in self._waiting):
            until = self._courtesy if self._ready else self._deadline
            try:
                self._take(self._answers.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                if self._ready:
                    break
                self._errors += [_silent(source) for source in self._waiting]
                self._waiting.clear()
        if not self._ready:
            raise self._no_more()
        self._ready.sort(key=lambda listing: listing.source != self._preferred)
        return self._ready.pop(0)

    @property
    def more(self) -> bool:
        """Whether another hub has given a listing, or may still give one."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(self._answers.get_nowait())
        late = time.monotonic() > self._deadline
        return bool(self._ready or (self._waiting and not late))

    def failed(self, error: IisftError) -> None:
        """Note that a listing from `next` could not be used."""
        self._errors.append(error)

    def _take(self, answer: tuple[str, Listing | TransferError]) -> None:
        if answer[0] not in self._waiting:
            return  # too late: it has been reported as silent
        self._waiting.remove(answer[0])
        if isinstance(answer[1], Listing):
            self._ready.append(answer[1])
        else:
            self._errors.append(answer[1])

    def _no_more(self) -> IisftError:
        """The one error, or one finding for each."""
        if len(self._errors) == 1:
            return self._errors[0]
        found: list[Finding] = []
        for error in self._errors:
            found += error.errors if isinstance(error, CheckFailed) else [transfer_finding(error)]
        return CheckFailed([*dict.fromkeys(found)])

    def _ask(self, source: str, repo: str, revision: str | None) -> None:
        try:
            endpoint = endpoint_of(source)
            require_name(endpoint, place_of(source, endpoint))
            answer: Listing | TransferError = (
                _patiently(huggingface_listing, repo, revision)
                if source == HUGGINGFACE
                else modelscope_listing(repo, revision)
            )
        except TransferError as error:
            answer = error
        self._answers.put((source, answer))


def transfer_finding(error: IisftError) -> Finding:
    """An error as one finding of several."""
    return replace(error.finding, exit_code=ExitCode.TRANSFER)


def _patiently(
    ask: Callable[[str, str | None], Listing], repo: str, revision: str | None
) -> Listing:
    for pause in _PAUSES_S:
        try:
            return ask(repo, revision)
        except TransferError as error:
            if error.code not in PASSING or error.code == "hub-timeout":
                raise
        time.sleep(pause)
    return ask(repo, revision)


def _silent(source: str) -> TransferError:
    place = place_of(source, endpoint_of(source))
    return TransferError(
        "hub-timeout",
        f"no listing from {place} within {DEADLINE_S:g} s",
        where=place,
        fix=f"try again, or --source {OTHER_HUB[source]}",
    )
