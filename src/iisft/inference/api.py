"""Answers from an OpenAI-compatible server, several at a time, with retries."""

import asyncio
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from iisft.data.read import conversation
from iisft.errors import EnvironmentFault, UsageError
from iisft.inference.output import Row
from iisft.inference.predict import Job, Outcome, Progress, Request, begun
from iisft.inference.talk import is_loopback
from iisft.json_values import parse_json
from iisft.runs.record.folder import RunFolder
from iisft.secrets import hide

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "OPENAI_API_KEY"
_TRIES = 6
_LONGEST_PAUSE_S = 60.0
_TIMEOUT_S = 600.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
# a wrong key, model name or address: no other row would fare better
_HOPELESS = frozenset({401, 403, 404})
_CONTINUE = "start the server, or check --url; the same command continues after the last row"
_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")
_SHOWN = 300  # characters of what a server said
_LARGEST_ANSWER = 16 * 2**20
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
            try:
                asyncio.run(_ask_all(endpoint, job, on_progress))
            except BaseExceptionGroup as errors:
                raise _first(errors) from None
        return job.finish()


def _first(errors: BaseExceptionGroup) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _ask_all(endpoint: Endpoint, job: Job, on_progress: Callable[[Progress], None]) -> None:
    import httpx

    key = os.environ.get(KEY_VARIABLE)
    rows, progress = _open_rows(job), job.progress()
    left = progress.rows - progress.done
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(_TIMEOUT_S, connect=10.0),
        # httpx sends even loopback requests to HTTP_PROXY unless NO_PROXY says otherwise
        trust_env=not is_loopback(urlsplit(endpoint.url).hostname or ""),
        limits=httpx.Limits(max_connections=endpoint.parallel),
    ) as client:

        async def work() -> None:
            for number, turns in rows:  # the workers share one iterator: each takes the next row
                row = await _answer(client, endpoint, number, turns, job.request.max_new_tokens)
                job.add([row])
                progress.add([row], job.new / left)
                on_progress(progress)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(endpoint.parallel, left)):
                group.create_task(work())


def _open_rows(job: Job) -> Iterator[tuple[int, "conversation.Conversation"]]:
    import orjson

    with job.request.data.file.open("rb") as stream:
        for number, line in zip(range(1, job.request.count + 1), stream, strict=False):
            if number not in job.done:
                yield number, conversation.from_row(orjson.loads(line))


async def _answer(
    client: "httpx.AsyncClient",
    endpoint: Endpoint,
    number: int,
    row: "conversation.Conversation",
    max_tokens: int,
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
        answer, error = await _post(client, endpoint, body)
    choices = answer.get("choices")
    choice = _mapping(choices[0] if isinstance(choices, list) and choices else None)
    usage, message = _mapping(answer.get("usage")), _mapping(choice.get("message"))
    finish, text = choice.get("finish_reason"), message.get("content")
    stop = _STOPS.get(finish) if isinstance(finish, str) else None
    if not error and (not choice or not isinstance(text, str | None)):
        error = f"the answer has another form: {str(answer)[:_SHOWN]}"
    elif not error and stop is None:
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
        "stop": stop,
        "error": error or None,
    }


async def _post(
    client: "httpx.AsyncClient", endpoint: Endpoint, body: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """The server's answer, or why there is none."""
    import httpx

    url, error = f"{endpoint.url}/chat/completions", ""
    for attempt in range(_TRIES):
        pause = min(2.0**attempt, _LONGEST_PAUSE_S)
        try:
            response = await _bounded(client, url, body)
        except httpx.TimeoutException:
            error = f"no answer within {_TIMEOUT_S:g} s"
        except httpx.DecodingError as fault:
            return {}, f"the answer can't be decoded: {fault}"
        except httpx.TransportError as fault:
            if attempt == _TRIES - 1:
                text = f"the server can't be reached: {fault or type(fault).__name__}"
                raise EnvironmentFault("api-unreachable", text, where=url, fix=_CONTINUE) from fault
        else:
            if response.is_success:
                return _parsed(response)
            error = f"HTTP {response.status_code}: {response.text[:_SHOWN]}"
            if response.status_code in _HOPELESS or response.is_redirect:
                fix = f"check --url and --api-model, and export {KEY_VARIABLE}=..."
                raise EnvironmentFault(
                    "api-refused", f"the server refuses: {error}", where=url, fix=fix
                )
            if response.status_code not in _PASSING:
                return {}, error
            pause = _asked_pause(response) or pause
        if attempt < _TRIES - 1:
            # not all at the same moment: the server was just overloaded
            await asyncio.sleep(pause * random.uniform(0.7, 1.0))
    return {}, error


async def _bounded(client: "httpx.AsyncClient", url: str, body: dict[str, Any]) -> "httpx.Response":
    """A server may answer for ever."""
    import httpx

    async with client.stream("POST", url, json=body) as response:
        content = bytearray()
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > _LARGEST_ANSWER:
                content = bytearray(b"more than 16 MiB")
                break
    headers = [(k, v) for k, v in response.headers.items() if k.lower() not in _OF_THE_WIRE]
    return httpx.Response(response.status_code, headers=headers, content=bytes(content))


def _parsed(response: "httpx.Response") -> tuple[dict[str, Any], str]:
    try:
        answer = parse_json(response.content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return {}, f"the answer is not a JSON object: {response.text[:_SHOWN]}"
    return answer, ""


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None


def _asked_pause(response: "httpx.Response") -> float | None:
    """Retry-After in seconds; its other form, a date, is ignored."""
    seconds = response.headers.get("retry-after", "")
    return min(float(seconds), _LONGEST_PAUSE_S) if re.fullmatch(r"\d+(\.\d+)?", seconds) else None
