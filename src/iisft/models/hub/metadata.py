"""Metadata from the two hubs' own clients: the commit, its files, and their digests."""

import logging
import os
from typing import Any

from iisft.errors import TransferError
from iisft.models.hub.listing import Listing, RemoteFile, checked_files
from iisft.models.hub.network import CONNECT_S, connection_error, shown, status_error

ANSWER_S = 10.0

HUGGINGFACE, MODELSCOPE = "huggingface", "modelscope"

NAMES = {HUGGINGFACE: "Hugging Face", MODELSCOPE: "ModelScope"}
_LOGINS = {
    HUGGINGFACE: "hf auth login, or export HF_TOKEN=...",
    MODELSCOPE: "export MODELSCOPE_API_TOKEN=...",
}
OTHER_HUB = {HUGGINGFACE: MODELSCOPE, MODELSCOPE: HUGGINGFACE}


def endpoint_of(source: str) -> str:
    """The address of a hub or of the mirror that stands in for it."""
    if source == HUGGINGFACE:
        return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    from modelscope_hub import HubConfig

    return str(HubConfig().endpoint)


def huggingface_listing(repo: str, revision: str | None) -> Listing:
    """The files of a model on Hugging Face.

    Raises:
        TransferError: it can't be had.
    """
    endpoint, asked = endpoint_of(HUGGINGFACE), revision or "main"
    if _is_set("HF_HUB_OFFLINE"):
        raise TransferError(
            "hub-offline",
            "HF_HUB_OFFLINE forbids asking Hugging Face",
            where="HF_HUB_OFFLINE",
            fix="unset HF_HUB_OFFLINE, or --source modelscope",
        )
    try:
        from huggingface_hub import HfApi, get_session, get_token, hf_hub_url, set_client_factory
        from huggingface_hub.hf_api import RepoFile

        # its own client (httpx, from 2 on httpx2), which waits for ever (utils/_http.py)
        client, waits = type(get_session()), (CONNECT_S, ANSWER_S, ANSWER_S, ANSWER_S)
        set_client_factory(lambda: client(follow_redirects=True, timeout=waits))
        api = HfApi(endpoint=endpoint, library_name="iisft")
        commit = api.model_info(repo, revision=asked, timeout=ANSWER_S).sha
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

    place = place_of(HUGGINGFACE, endpoint)
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


def modelscope_listing(repo: str, revision: str | None) -> Listing:
    """The files of a model on ModelScope, whose client retries four times itself.

    Raises:
        TransferError: it can't be had.
    """
    asked, place = revision or "master", NAMES[MODELSCOPE]
    try:
        from modelscope_hub import HubApi, HubConfig

        # its log lines would break the progress bar
        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
        config = HubConfig()
        endpoint = str(config.endpoint)
        place = place_of(MODELSCOPE, endpoint)
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
        f"--source {OTHER_HUB[source]}",
    )


def _no_revision(place: str, repo: str, revision: str) -> TransferError:
    return TransferError(
        "hub-no-such-revision",
        f"{repo} has no revision {revision!r} on {place}",
        where=place,
        fix="leave --revision out, or name a branch, tag or commit of that hub",
    )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "TRUE", "YES", "ON")


def place_of(source: str, endpoint: str) -> str:
    """A hub's name and address, for messages."""
    return f"{NAMES[source]} ({shown(endpoint)})"
