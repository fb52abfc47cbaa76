"""How iisft talks to hubs: timeouts, certificates, and messages for what goes wrong."""

import os
import queue
import re
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from iisft.errors import TransferError

CONNECT_S = 10.0
READ_S = 30.0  # between two bytes: requests has no limit for a whole transfer
NAME_S = 10.0  # for a resolver that answers slowly
_OFFLINE_NAME_S = 1.0  # where there is no route to one

# Codes of TransferErrors that waiting, or another hub, may fix.
PASSING = frozenset({"hub-unreachable", "hub-timeout", "hub-error", "hub-busy"})

_KNOWN_FAILURES = (
    "Connection refused",
    "Name or service not known",
    "No route to host",
    "Connection reset by peer",
    "Network is unreachable",
    "Temporary failure in name resolution",
    "Cannot connect to proxy",
    "Connection aborted",
    "server disconnected",
    "Server disconnected",
)
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def agree_on_certificates() -> None:
    """Let huggingface_hub's client and requests trust the same bundle.

    httpx and httpx2 read SSL_CERT_FILE, requests REQUESTS_CA_BUNDLE; each ignores the other's.
    """
    bundle = next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)
    if bundle is not None:
        os.environ.setdefault("SSL_CERT_FILE", bundle)
        os.environ.setdefault("REQUESTS_CA_BUNDLE", bundle)


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what may see a token."""
    parts = urlsplit(url)
    return (
        parts.scheme,
        parts.hostname or "",
        parts.port or {"http": 80, "https": 443}.get(parts.scheme),
    )


def shown(url: str) -> str:
    """A URL for messages and files, without its password, query (signatures) and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def require_name(endpoint: str, place: str) -> None:
    """Fail at once where the address has no scheme, or its name no address.

    The clients would say the first in their own words, and try for the second ten seconds long.

    Raises:
        TransferError: so it is.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TransferError(
            "hub-endpoint",
            f"HF_ENDPOINT is not an address: {shown(endpoint)}",
            where="HF_ENDPOINT",
            fix=f"export HF_ENDPOINT=https://{endpoint.rpartition('://')[2].rpartition('@')[2]}",
        )
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname):
        return  # the proxy knows the name
    answers: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
    name, port = parts.hostname, parts.port or parts.scheme

    def resolve() -> None:
        try:
            socket.getaddrinfo(name, port)
        except (OSError, UnicodeError) as error:
            answers.put(error if isinstance(error, OSError) else OSError(str(error)))
        else:
            answers.put(None)

    threading.Thread(target=resolve, daemon=True).start()
    try:
        error = answers.get(timeout=NAME_S if _has_route() else _OFFLINE_NAME_S)
    except queue.Empty:
        error = OSError("no answer from a resolver")
    if error is not None:
        offline = "" if _has_route() else "; this machine has no network"
        raise TransferError(
            "hub-unknown-name",
            f"{place} can't be reached: {_short(str(error))}{offline}",
            where=place,
            fix=_try_elsewhere(place, ""),
        ) from error


def _has_route() -> bool:
    """Whether this machine has a way out; also where that can't be seen."""
    try:
        four = Path("/proc/net/route").read_text(encoding="ascii").splitlines()[1:]
        six = Path("/proc/net/ipv6_route").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return True
    return any(line.split()[1:2] == ["00000000"] for line in four) or any(
        line.startswith("0" * 32 + " 00 ") and not line.endswith(" lo") for line in six
    )


def connection_error(error: BaseException, place: str) -> TransferError:
    """What a failed connection means, judged by the names of the exception and its causes."""
    names, texts = _chain(error)
    proxy = _proxy_hint()
    if "SOCKS" in texts or "socksio" in texts:
        return TransferError(
            "proxy-socks",
            "the environment names a SOCKS proxy, but the packages for it are not installed",
            where=proxy,
            fix="pip install socksio PySocks, or name an HTTP proxy: export "
            "HTTPS_PROXY=http://HOST:PORT",
        )
    if "CERTIFICATE_VERIFY_FAILED" in texts or "SSLCertVerificationError" in names:
        return TransferError(
            "hub-certificate",
            f"the certificate of {place} can't be verified",
            where=place,
            fix="behind a proxy that opens TLS: export SSL_CERT_FILE=/path/to/its/ca.pem",
        )
    if "Timeout" in names:
        return TransferError(
            "hub-timeout",
            f"no answer from {place} in time",
            where=place,
            fix=_try_elsewhere(place, proxy),
        )
    return TransferError(
        "hub-unreachable",
        f"{place} can't be reached: {_short(texts)}",
        where=place,
        fix=_try_elsewhere(place, proxy),
    )


def status_error(status: int, place: str, what: str) -> TransferError:
    """What an HTTP status of 400 and more means for `what`."""
    if status == 429:
        return TransferError(
            "hub-busy",
            f"{place} wants fewer requests (429)",
            where=what,
            fix="wait a few minutes, log in, or try another --source",
        )
    if status >= 500:
        return TransferError(
            "hub-error",
            f"{place} has an error of its own ({status})",
            where=what,
            fix="try again later, or try another --source",
        )
    if status == 401:
        text = f"{place} wants a login for this (401)"
    elif status == 403:
        text = f"{place} refuses this (403): the token's owner may not read it"
    elif status == 404:
        return TransferError(
            "hub-no-such-file",
            f"{place} no longer has it (404)",
            where=what,
            fix="run the command again: the repository changed",
        )
    else:
        text = f"{place} refuses the request ({status})"
    return TransferError(
        "hub-refused", text, where=what, fix="log in, or ask for access on the model's page"
    )


def _chain(error: BaseException) -> tuple[str, str]:
    names: list[str] = []
    texts: list[str] = []
    step: BaseException | None = error
    while step is not None and len(names) < 10:
        names.append(type(step).__name__)
        texts.append(str(step))
        step = step.__cause__ or step.__context__
    return " ".join(names), " | ".join(texts)


def _short(text: str) -> str:
    for known in _KNOWN_FAILURES:
        if known in text:
            return known[0].lower() + known[1:]
    first = text.partition(" | ")[0]
    return re.sub(r"https?://\S+", lambda match: shown(match.group()), first)[:200]


def _proxy_hint() -> str:
    for name in (
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        if os.environ.get(name):
            return f"{name}={shown(os.environ[name])}"
    return ""


def _try_elsewhere(place: str, proxy: str) -> str:
    via = f"; the connection goes through {proxy}" if proxy else ""
    if place.startswith("ModelScope"):
        return f"check the network, or --source huggingface{via}"
    return (
        "check the network, or --source modelscope, or a mirror: export "
        f"HF_ENDPOINT=https://hf-mirror.com{via}"
    )
