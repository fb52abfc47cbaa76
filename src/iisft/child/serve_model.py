"""A run's model behind OpenAI's chat completions, on a socket bound beforehand.

Runs in the training interpreter (see run_model.py). The specification also has: {"socket":
descriptor, "name": the model's, "key": text or null, "hosts": the names it may be asked under, null
for any, "call_words", "between_results": see chat_turns.py}.

Model, template and prompt are LLaMA-Factory's; the requests are not: its API (api/app.py) leaves
out what it does not know, passes the arguments of calls as text, and lets one slow reader of a
stream hold up everybody.
"""

import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import uvicorn
from chat_api import Api
from chat_request import Asked
from chat_turns import Known, Refused
from guard_iisft import Guard
from run_model import Link, agreed, is_out_of_memory, load, stop_ids
from saying import Saying
from transformers import StoppingCriteriaList

LONGEST_ANSWER = 131_072  # tokens, of a model that names no context


class Server(uvicorn.Server):
    """Reports when it answers."""

    def __init__(self, config: uvicorn.Config, link: Link) -> None:
        super().__init__(config)
        self._link = link

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._link.send(kind="ready")


class Model:
    """LLaMA-Factory's engine, one request after the other."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.context: int | None = getattr(engine.model.config, "max_position_embeddings", None)

    def prepared(self, asked: Asked) -> tuple[dict[str, Any], int]:
        """What generate takes, and the length of the prompt.

        Raises:
            Refused: the template can't say this, or the context is too small for it.
        """
        engine = self._engine
        wanted = {
            "do_sample": asked.temperature > 0,
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": 0,  # LLaMA-Factory's own is 50, OpenAI's API has none
            "num_return_sequences": asked.n,
            "max_new_tokens": asked.most_tokens,
        }
        arguments = [engine.model, engine.tokenizer, engine.processor, engine.template]
        conversation = [list(asked.messages), asked.system, asked.tools, None, None, None]
        try:
            kwargs, length = engine._process_args(
                *arguments, engine.generating_args, *conversation, wanted
            )
        except Exception as error:
            traceback.print_exc()
            text = f"the run's template can't write this conversation: {error}"
            raise Refused(400, text, "invalid_value", "messages") from error
        config = kwargs["generation_config"]
        if self.context is not None:
            left = self.context - length
            if left < 1:
                text = f"the conversation has {length} tokens, the context ends at {self.context}"
                raise Refused(400, text, "context_length_exceeded", "messages")
            config.max_new_tokens = min(config.max_new_tokens, left)
        return kwargs, length

    def saying(self, asked: Asked, length: int, tell: Callable[[int, str], None]) -> Saying:
        engine = self._engine
        ends = frozenset(stop_ids(engine))
        return Saying(engine.tokenizer, length, asked.n, ends, asked.stops, tell)

    @torch.inference_mode()
    def generate(self, kwargs: dict[str, Any], seed: int | None, saying: Saying) -> None:
        """Answer, and tell on the way.

        Raises:
            Refused: it failed.
        """
        if seed is None:
            torch.seed()
        else:
            torch.manual_seed(seed)

        def step(ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            done = saying.read(ids[:, saying.prompt :].tolist())
            return torch.tensor(done, device=ids.device)

        try:
            ids = self._engine.model.generate(
                **kwargs, stopping_criteria=StoppingCriteriaList([step])
            )
        except Exception as error:
            traceback.print_exc()
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                torch.cuda.empty_cache()
                text = f"out of memory with a conversation of {saying.prompt} tokens"
                raise Refused(503, text, "out_of_memory") from error
            raise Refused(500, f"{type(error).__name__}: {error}", "server_error") from error
        saying.end(ids[:, saying.prompt :].tolist())

    def calls_in(self, text: str) -> list[tuple[str, str]]:
        """The calls of an answer, none where it is text."""
        try:
            found = self._engine.template.extract_tool(text)
        except Exception:  # it reads what a model wrote
            traceback.print_exc()
            return []
        return [] if isinstance(found, str) else [(call.name, call.arguments) for call in found]


def main() -> None:
    link = Link()
    spec = link.receive()
    engine = load(spec).engine
    agreed(link, engine)
    model = Model(engine)
    known = Known(
        spec["name"],
        model.context or LONGEST_ANSWER,
        tuple(spec["call_words"]),
        spec["between_results"],
    )
    guard = Guard(Api(model, known), spec["key"], spec["hosts"])
    config = uvicorn.Config(guard, lifespan="off", access_log=False)
    Server(config, link).run(sockets=[socket.socket(fileno=spec["socket"])])
    link.send(kind="end")


if __name__ == "__main__":
    main()
