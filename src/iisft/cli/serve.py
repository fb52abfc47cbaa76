"""iisft serve: an OpenAI-style API over a run's model."""

import json
import os
from typing import Annotated

import typer

from iisft.cli import console
from iisft.cli.options import (
    BaseModelOption,
    CheckpointOption,
    CpuOption,
    JsonOption,
    MaxTokensOption,
    RunArgument,
)
from iisft.quoting import shell_word


def serve(
    run: RunArgument = None,
    checkpoint: CheckpointOption = None,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 lets other machines connect, with a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 = any free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name in the API; default: the run's id.")
    ] = None,
    max_tokens: MaxTokensOption = None,
    model: BaseModelOption = None,
    cpu: CpuOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve a run's model over an OpenAI-style API.

    On this machine alone unless --host says otherwise. Ctrl-C ends it.

    \b
    Examples:
      iisft serve RUN --port 8000
      iisft serve RUN --host 0.0.0.0
    """
    from iisft.cli.progress import prepare
    from iisft.inference import talk

    with talk.bound(host, port) as address:
        ready = prepare(run, checkpoint, model, cpu=cpu, max_tokens=max_tokens)
        console.say("loading the model")
        known_as = name or ready.source.folder.id
        with talk.served(
            ready.source, ready.chosen, address, name=known_as, max_new_tokens=ready.max_new_tokens
        ) as worker:
            if as_json:
                console.out_json({"url": address.url, "model": known_as, "api_key": address.key})
            else:
                _say(address.url, known_as, address.key)
            for _ in worker.messages():
                pass


def _say(url: str, known_as: str, key: str | None) -> None:
    from iisft.inference.talk import KEY_VARIABLE

    console.out(url)
    if key is not None and os.environ.get(KEY_VARIABLE) != key:
        console.say(f"{KEY_VARIABLE}={key}   (set it yourself for a key of your own)")
    authorization = f'-H "Authorization: Bearer ${KEY_VARIABLE}" ' if key is not None else ""
    body = (
        f'{{"model": {json.dumps(known_as)}, "messages": [{{"role": "user", "content": "hello"}}]}}'
    )
    console.say(
        f"try: curl {url}/chat/completions {authorization}-H 'Content-Type: application/json' -d "
        f"{shell_word(body)}"
    )
    console.say("Ctrl-C ends it")
