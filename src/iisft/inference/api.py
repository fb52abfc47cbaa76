"""Answers from an OpenAI-compatible server, several at once.

What passes by itself is tried again.
"""

import asyncio
import ipaddress
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
from iisft.runs.record.folder import RunFolder
from iisft.secrets import hide

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "OPENAI_API_KEY"
_TRIES = 6
_LONGEST_PAUSE_S = 60.0
_TIMEOUT_S = 600.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
# the key, the model's name or the address: no row fares better
_HOPELESS = frozenset({401, 403, 404})
_GO_ON = "start the server, or check --url; the same command goes on after the last row"
_STOPS = {"stop": "eos", "length": "length"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and a model of it. The key comes from OPENAI_API_KEY and stands in no file."""

    url: str
    model: str
    parallel: int

    @property
    def which(self) -> str:
        """The name of its predictions' file."""
        return "api-" + re.sub(r"[^\w.-]+", "-", self.model)


def endpoint_for(url: str | None, model: str | None, parallel: int) -> Endpoint:
    """What `--backend api` was told.

    Raises:
        UsageError: something is missing or no address.
    """
    if url is None or model is None:
        raise UsageError(
            "api-url", "--backend api needs --url and --api-model", fix="--url http://HOST:PORT/v1"
        )
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UsageError(
            "api-url", f"--url is no http address: {url}", fix="--url http://HOST:PORT/v1"
        )
    if parallel < 1:
        raise UsageError("parallel", f"--parallel must be at least 1, not {parallel}")
    return Endpoint(url.rstrip("/"), model, parallel)


def predict(
    folder: RunFolder, endpoint: Endpoint, request: Request, on_progress: Callable[[Progress], None]
) -> Outcome:
    """Ask for what is missing. A row that the server refuses has an `error`, and is asked again by
    the next call.

    Raises:
        RunStateError: another command writes there, or older answers were made in another way.
        EnvironmentFault: the server can't be reached or refuses everything; the rows so far are
        kept.
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
        # a proxy is not asked for this machine's own server
        trust_env=not _is_loopback(endpoint.url),
        limits=httpx.Limits(max_connections=endpoint.parallel),
    ) as client:

        async def work() -> None:
            for number, turns in rows:
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
    error = "rows with tool calls are not asked of an API"
    if not row.tools and all(turn.role in ("user", "assistant") for turn in row.messages):
        body = {
            "model": endpoint.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        answer, error = await _post(client, endpoint, body)
    choice: dict[str, Any] = (answer.get("choices") or [{}])[0]
    usage: dict[str, Any] = answer.get("usage") or {}
    finish = choice.get("finish_reason")
    if not error and finish not in _STOPS:
        error = f"the server ended the answer by {finish!r}"
    text = (choice.get("message") or {}).get("content") or ""
    return {
        "row": number,
        "prompt": "\n\n".join(message["content"] for message in messages),
        "reference": reference.content,
        # half of a surrogate pair fits into no file
        "prediction": text.encode("utf-8", "replace").decode(),
        "prompt_tokens": usage.get("prompt_tokens"),
        "tokens": usage.get("completion_tokens"),
        "stop": _STOPS.get(finish or ""),
        "error": error or None,
    }


async def _post(
    client: "httpx.AsyncClient", endpoint: Endpoint, body: dict[str, Any]
) -> tuple[dict[str, Any], str]:
    """The server's answer, or why this row has none."""
    import httpx

    url, error = f"{endpoint.url}/chat/completions", ""
    for attempt in range(_TRIES):
        pause = min(2.0**attempt, _LONGEST_PAUSE_S)
        try:
            response = await client.post(url, json=body)
        except httpx.TimeoutException:
            error = f"no answer within {_TIMEOUT_S:g} s"
        except httpx.TransportError as fault:
            if attempt == _TRIES - 1:
                text = f"the server can't be reached: {fault or type(fault).__name__}"
                raise EnvironmentFault("api-unreachable", text, where=url, fix=_GO_ON) from fault
        else:
            if response.is_success:
                return _parsed(response)
            error = f"HTTP {response.status_code}: {response.text[:300]}"
            if response.status_code in _HOPELESS or response.is_redirect:
                fix = f"check --url and --api-model, and export {KEY_VARIABLE}=..."
                raise EnvironmentFault(
                    "api-refused", f"the server refuses: {error}", where=url, fix=fix
                )
            if response.status_code not in _PASSING:
                return {}, error
            pause = _asked_pause(response) or pause
        if attempt < _TRIES - 1:
            await asyncio.sleep(pause * random.uniform(0.7, 1.0))
    return {}, error


def _parsed(response: "httpx.Response") -> tuple[dict[str, Any], str]:
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return {}, f"the answer is no JSON object: {response.text[:300]}"
    return answer, ""


def _asked_pause(response: "httpx.Response") -> float | None:
    """Retry-After in seconds; its other form, a date, is left alone."""
    seconds = response.headers.get("retry-after", "")
    return min(float(seconds), _LONGEST_PAUSE_S) if re.fullmatch(r"\d+(\.\d+)?", seconds) else None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
