"""Answers from an OpenAI-compatible server, several at a time, with retries."""

import os
import queue
import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from iisft.data.read import conversation
from iisft.errors import EnvironmentFault, UsageError
from iisft.inference.output import Row
from iisft.inference.predict import Job, Outcome, Progress, Request, begun
from iisft.json_values import parse_json
from iisft.runs.record.folder import RunFolder
from iisft.secrets import hide
from iisft.sockets import is_loopback

if TYPE_CHECKING:
    import requests

KEY_VARIABLE = "OPENAI_API_KEY"
_TRIES = 6
_LONGEST_PAUSE_S = 60.0
_CONNECT_S = 10.0
_TIMEOUT_S = 600.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
# a wrong key, model name or address: no other row would fare better
_HOPELESS = frozenset({401, 403, 404})
_CONTINUE = "start the server, or check --url; the same command continues after the last row"
_SHOWN = 300  # characters of what a server said
_LARGEST_ANSWER = 16 * 2**20
_CHUNK = 2**16
_STOPS = {"stop": "eos", "length": "length"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and one of its models. The key comes from OPENAI_API_KEY and is never stored."""

    url: str
    model: str
    parallel: int

    @property
    def which(self) -> str:
        """The name of its predictions' file."""
        return "api-" + re.sub(r"[^\w.-]+", "-", self.model)


def endpoint_for(url: str | None, model: str | None, parallel: int) -> Endpoint:
    """The endpoint of the options of `--backend api`.

    Raises:
        UsageError: an option is missing, or the address is invalid.
    """
    if url is None or model is None:
        raise UsageError(
            "api-url", "--backend api needs --url and --api-model", fix="--url http://HOST:PORT/v1"
        )
    if not _is_address(url):
        raise UsageError(
            "api-url", f"--url is not an http address: {url}", fix="--url http://HOST:PORT/v1"
        )
    if parallel < 1:
        raise UsageError("parallel", f"--parallel must be at least 1, not {parallel}")
    return Endpoint(url.rstrip("/"), model, parallel)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port over 65535, half an IPv6 address
        return False


def predict(
    folder: RunFolder, endpoint: Endpoint, request: Request, on_progress: Callable[[Progress], None]
) -> Outcome:
    """Ask for the missing rows. A row that the server refuses gets an `error` and is asked again.

    Raises:
        RunStateError: another command is writing there, or older answers had other settings.
        EnvironmentFault: the server can't be reached or refuses everything; finished rows are kept.
    """
    about = request.about(endpoint.which, endpoint.model, "api", url=hide(endpoint.url))
    with begun(folder, endpoint.which, request, about) as job:
        if job.missing:
            _ask_all(endpoint, job, on_progress)
        return job.finish()


def _ask_all(endpoint: Endpoint, job: Job, on_progress: Callable[[Progress], None]) -> None:
    """Threads ask; this one writes. They are daemons: Ctrl-C waits for no answer."""
    open_rows, progress = _open_rows(job), job.progress()
    left = progress.rows - progress.done
    answers: queue.SimpleQueue[Row | BaseException] = queue.SimpleQueue()
    turn, stop = threading.Lock(), threading.Event()

    def work() -> None:
        try:
            with _session(endpoint) as session:
                while not stop.is_set():
                    with turn:  # they share one iterator: each takes the next row
                        number, row = next(open_rows, (0, None))
                    if row is None:
                        return
                    tokens = job.request.max_new_tokens
                    answers.put(_answer(session, endpoint, number, row, tokens, stop))
        except BaseException as error:
            answers.put(error)

    for _ in range(min(endpoint.parallel, left)):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(left):
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            job.add([answer])
            progress.add([answer], job.new / left)
            on_progress(progress)
    finally:
        stop.set()


def _session(endpoint: Endpoint) -> "requests.Session":
    import requests

    session, key = requests.Session(), os.environ.get(KEY_VARIABLE)
    # requests sends even loopback requests to HTTP_PROXY unless NO_PROXY says otherwise
    session.trust_env = not is_loopback(urlsplit(endpoint.url).hostname or "")
    # and lets a password from ~/.netrc replace the header, unless it is given an `auth`
    session.auth = lambda request: request
    if key:
        session.headers["Authorization"] = f"Bearer {key}"
    return session


def _open_rows(job: Job) -> Iterator[tuple[int, "conversation.Conversation"]]:
    import orjson

    with job.request.data.file.open("rb") as stream:
        for number, line in zip(range(1, job.request.count + 1), stream, strict=False):
            if number not in job.done:
                yield number, conversation.from_row(orjson.loads(line))


def _answer(
    session: "requests.Session",
    endpoint: Endpoint,
    number: int,
    row: "conversation.Conversation",
    max_tokens: int,
    stop: threading.Event,
) -> Row:
    *prompt, reference = row.messages
    messages = [{"role": "system", "content": row.system}] if row.system else []
    messages += [{"role": turn.role, "content": turn.content} for turn in prompt]
    answer: dict[str, Any] = {}
    error = "rows with tool calls are not sent to an API"
    if not row.tools and all(turn.role in ("user", "assistant") for turn in row.messages):
        body = {
            "model": endpoint.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,  # deprecated by OpenAI, but the name all servers know
        }
        answer, error = _post(session, endpoint, body, stop)
    choices = answer.get("choices")
    choice = _mapping(choices[0] if isinstance(choices, list) and choices else None)
    usage, message = _mapping(answer.get("usage")), _mapping(choice.get("message"))
    finish, text = choice.get("finish_reason"), message.get("content")
    reason = _STOPS.get(finish) if isinstance(finish, str) else None
    if not error and (not choice or not isinstance(text, str | None)):
        error = f"the answer has another form: {str(answer)[:_SHOWN]}"
    elif not error and reason is None:
        error = f"the server ended the answer by {str(finish)[:_SHOWN]!r}"
    text = text if isinstance(text, str) else ""
    return {
        "row": number,
        "prompt": "\n\n".join(message["content"] for message in messages),
        "reference": reference.content,
        # half of a surrogate pair can't be encoded
        "prediction": text.encode("utf-8", "replace").decode(),
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "tokens": _count(usage.get("completion_tokens")),
        "stop": reason,
        "error": error or None,
    }


def _post(
    session: "requests.Session", endpoint: Endpoint, body: dict[str, Any], stop: threading.Event
) -> tuple[dict[str, Any], str]:
    """The server's answer, or why there is none."""
    from requests.exceptions import ContentDecodingError, RequestException, Timeout

    url, error = f"{endpoint.url}/chat/completions", ""
    for attempt in range(_TRIES):
        pause = min(2.0**attempt, _LONGEST_PAUSE_S)
        try:
            response, content = _bounded(session, url, body)
        except Timeout:
            error = f"no answer within {_TIMEOUT_S:g} s"
        except ContentDecodingError as fault:
            return {}, f"the answer can't be decoded: {fault}"
        except RequestException as fault:
            if attempt == _TRIES - 1:
                text = f"the server can't be reached: {fault or type(fault).__name__}"
                raise EnvironmentFault("api-unreachable", text, where=url, fix=_CONTINUE) from fault
        else:
            status = response.status_code
            if 200 <= status < 300:
                return _parsed(content)
            error = f"HTTP {status}: {_text(content)}"
            if status in _HOPELESS or response.is_redirect:
                fix = f"check --url and --api-model, and export {KEY_VARIABLE}=..."
                raise EnvironmentFault(
                    "api-refused", f"the server refuses: {error}", where=url, fix=fix
                )
            if status not in _PASSING:
                return {}, error
            pause = _asked_pause(response) or pause
        # not all at the same moment: the server was just overloaded
        if attempt < _TRIES - 1 and stop.wait(pause * random.uniform(0.7, 1.0)):
            break
    return {}, error


def _bounded(
    session: "requests.Session", url: str, body: dict[str, Any]
) -> "tuple[requests.Response, bytes]":
    """A server may answer for ever."""
    with session.post(
        url, json=body, stream=True, allow_redirects=False, timeout=(_CONNECT_S, _TIMEOUT_S)
    ) as response:
        content = bytearray()
        for chunk in response.iter_content(_CHUNK):
            content += chunk
            if len(content) > _LARGEST_ANSWER:
                content = bytearray(b"more than 16 MiB")
                break
    return response, bytes(content)


def _parsed(content: bytes) -> tuple[dict[str, Any], str]:
    try:
        answer = parse_json(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return {}, f"the answer is not a JSON object: {_text(content)}"
    return answer, ""


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")[:_SHOWN]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _asked_pause(response: "requests.Response") -> float | None:
    """Retry-After in seconds; its other form, a date, is ignored."""
    seconds = response.headers.get("Retry-After", "")
    return min(float(seconds), _LONGEST_PAUSE_S) if re.fullmatch(r"\d+(\.\d+)?", seconds) else None
