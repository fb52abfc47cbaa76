"""Metadata from the two hubs' own clients: the commit, its files, and their digests."""

import contextlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from iisft.errors import CheckFailed, ExitCode, Finding, IisftError, TransferError, UsageError
from iisft.models.hub.listing import Listing, RemoteFile, checked_files
from iisft.models.hub.network import (
    CONNECT_S,
    PASSING,
    agree_on_certificates,
    connection_error,
    shown,
    status_error,
)

DEADLINE_S = 30.0  # for one hub's whole listing
_ANSWER_S = 10.0
_PAUSES_S = (1.0, 3.0)  # between attempts

HUGGINGFACE, MODELSCOPE = "huggingface", "modelscope"
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)

NAMES = {HUGGINGFACE: "Hugging Face", MODELSCOPE: "ModelScope"}
_LOGINS = {
    HUGGINGFACE: "hf auth login, or export HF_TOKEN=...",
    MODELSCOPE: "export MODELSCOPE_API_TOKEN=...",
}
_OTHER = {HUGGINGFACE: MODELSCOPE, MODELSCOPE: HUGGINGFACE}


class Hubs:
    """Asks all hubs at the same time; `next` gives their listings in the order they answer.

    `preferred` may answer a little later than the first: a folder stays with its hub.
    """

    def __init__(
        self, repo: str, revision: str | None, sources: Sequence[str], preferred: str = ""
    ) -> None:
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
        self._preferred, self._courtesy = preferred, time.monotonic() + _ANSWER_S
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
            answer: Listing | TransferError = (
                _patiently(_huggingface, repo, revision)
                if source == HUGGINGFACE
                else _modelscope(repo, revision)  # its client retries four times itself
            )
        except TransferError as error:
            answer = error
        self._answers.put((source, answer))


def transfer_finding(error: IisftError) -> Finding:
    """An error as one finding of several."""
    return replace(error.finding, exit_code=ExitCode.TRANSFER)


def endpoint_of(source: str) -> str:
    """The address of a hub or of the mirror that stands in for it."""
    if source == HUGGINGFACE:
        return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    from modelscope_hub import HubConfig

    return str(HubConfig().endpoint)


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


def _huggingface(repo: str, revision: str | None) -> Listing:
    endpoint, asked = endpoint_of(HUGGINGFACE), revision or "main"
    if _is_set("HF_HUB_OFFLINE"):
        raise TransferError(
            "hub-offline",
            "HF_HUB_OFFLINE forbids asking Hugging Face",
            where="HF_HUB_OFFLINE",
            fix="unset HF_HUB_OFFLINE, or --source modelscope",
        )
    try:
        import httpx
        from huggingface_hub import HfApi, get_token, hf_hub_url, set_client_factory
        from huggingface_hub.hf_api import RepoFile

        # huggingface_hub's default httpx client sets timeout=None (utils/_http.py)
        set_client_factory(
            lambda: httpx.Client(
                follow_redirects=True, timeout=httpx.Timeout(_ANSWER_S, connect=CONNECT_S)
            )
        )
        api = HfApi(endpoint=endpoint, library_name="iisft")
        commit = api.model_info(repo, revision=asked, timeout=_ANSWER_S).sha
        if not commit:
            raise ValueError("no commit")
        files = [
            RemoteFile(
                path=entry.path,
                size=entry.size,
                url=hf_hub_url(repo, entry.path, revision=commit, endpoint=endpoint),
                sha256=entry.lfs.sha256 if entry.lfs else None,
                git_sha1=None if entry.lfs else entry.blob_id,
            )
            for entry in api.list_repo_tree(repo, recursive=True, revision=commit)
            if isinstance(entry, RepoFile)
        ]
        token = None if _is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") else get_token()
    except Exception as error:
        raise _huggingface_error(error, endpoint, repo, asked) from error
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Listing(HUGGINGFACE, shown(endpoint), repo, asked, commit, checked_files(files), headers)


def _huggingface_error(error: Exception, endpoint: str, repo: str, revision: str) -> TransferError:
    from huggingface_hub import errors

    place = _place(HUGGINGFACE, endpoint)
    if isinstance(error, errors.GatedRepoError):
        return TransferError(
            "hub-gated",
            f"{repo} is gated on {place}: its licence must be accepted first",
            where=f"{shown(endpoint)}/{repo}",
            fix=f"accept it on that page in a browser, then {_LOGINS[HUGGINGFACE]}; "
            "or --source modelscope, where many are not gated",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return _no_revision(place, repo, revision)
    if isinstance(error, errors.RepositoryNotFoundError):
        return _no_model(HUGGINGFACE, place, repo)
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(HUGGINGFACE, place, repo, error.response.status_code)
    return _other_error(error, place)


def _modelscope(repo: str, revision: str | None) -> Listing:
    asked, place = revision or "master", NAMES[MODELSCOPE]
    try:
        from modelscope_hub import HubApi, HubConfig

        # its log lines would break the progress bar
        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
        config = HubConfig()
        endpoint = str(config.endpoint)
        place = _place(MODELSCOPE, endpoint)
        client = HubApi(config).legacy
        entries = client.list_repo_files(repo, "model", revision=asked)
        files = [
            RemoteFile(
                path=entry["Path"],
                size=entry["Size"],
                url=client.get_download_url(repo, "model", entry["Path"], asked),
                sha256=entry.get("Sha256") or None,
            )
            for entry in entries
            if entry.get("Type") != "tree"
        ]
        # ModelScope names a commit for each file but not for the repository: pin the newest.
        newest = max(entries, key=lambda entry: entry.get("CommittedDate") or 0, default={})
        commit = str(newest.get("Revision") or "")
    except Exception as error:
        raise _modelscope_error(error, place, repo, asked) from error
    if not files:
        raise _no_model(MODELSCOPE, place, repo)
    token = config.token
    headers = (
        {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    )
    return Listing(MODELSCOPE, shown(endpoint), repo, asked, commit, checked_files(files), headers)


def _modelscope_error(error: Exception, place: str, repo: str, revision: str) -> TransferError:
    status: Any = getattr(error, "status_code", None)
    if status == 404:
        named = "revision" in str(getattr(error, "response_body", "")).lower()
        return _no_revision(place, repo, revision) if named else _no_model(MODELSCOPE, place, repo)
    if isinstance(status, int):
        return _refused(MODELSCOPE, place, repo, status)
    if type(error).__name__ == "ServerError":  # raised by the client after its own retries
        return status_error(503, place, repo)
    return _other_error(error, place)


def _other_error(error: Exception, place: str) -> TransferError:
    if isinstance(error, TransferError):
        return error
    if isinstance(error, ValueError | KeyError | TypeError | AttributeError) and "SOCKS" not in str(
        error
    ):
        return TransferError(
            "hub-answer",
            f"{place} answers with something that is not a model listing",
            where=place,
            fix="a login page of the network, or a wrong HF_ENDPOINT or MODELSCOPE_ENDPOINT, "
            "looks like this",
        )
    return connection_error(error, place)


def _refused(source: str, place: str, repo: str, status: int) -> TransferError:
    if status in (401, 403):
        reason = (
            "wants a login for it, or it does not exist, or the token is wrong"
            if status == 401
            else "does not let this token's owner read it"
        )
        return TransferError(
            "hub-refused",
            f"{repo}: {place} {reason} ({status})",
            where=place,
            fix=f"{_LOGINS[source]}; check the spelling",
        )
    return status_error(status, place, repo)


def _no_model(source: str, place: str, repo: str) -> TransferError:
    return TransferError(
        "hub-no-such-model",
        f"{place} has no model {repo}, or it is private",
        where=place,
        fix=f"check the spelling; a private one needs a login: {_LOGINS[source]}; other hub: "
        f"--source {_OTHER[source]}",
    )


def _no_revision(place: str, repo: str, revision: str) -> TransferError:
    return TransferError(
        "hub-no-such-revision",
        f"{repo} has no revision {revision!r} on {place}",
        where=place,
        fix="leave --revision out, or name a branch, tag or commit of that hub",
    )


def _silent(source: str) -> TransferError:
    place = _place(source, endpoint_of(source))
    return TransferError(
        "hub-timeout",
        f"no listing from {place} within {DEADLINE_S:g} s",
        where=place,
        fix=f"try again, or --source {_OTHER[source]}",
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "TRUE", "YES", "ON")


def _place(source: str, endpoint: str) -> str:
    return f"{NAMES[source]} ({shown(endpoint)})"
