"""What chat and the API need beyond LLaMA-Factory's engine: an error ends a stream, a context has
an end, and a request can be taken back. Runs in the training interpreter (see run_model.py).

LLaMA-Factory generates in a thread; when that dies of an error its stream waits for ever.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteriaList, TextIteratorStreamer


class TooLong(ValueError):
    """The conversation fills the model's context."""


class Streamer(TextIteratorStreamer):
    """Text as it comes, and the error that ended it."""

    def fail(self, error: Exception) -> None:
        self.text_queue.put(error)

    def __next__(self) -> str:
        text = self.text_queue.get()
        if isinstance(text, Exception):
            raise text
        if text == self.stop_signal:
            raise StopIteration
        return text


class Generate:
    """Stands for a model's generate.

    Args:
        engine: LLaMA-Factory's.
        taken_back: whether the present request is not wanted any more.
    """

    def __init__(self, engine: Any, taken_back: Callable[[], bool] = lambda: False) -> None:
        from llamafactory.chat import hf_engine

        hf_engine.TextIteratorStreamer = Streamer
        self._generate = engine.model.generate
        self._taken_back = taken_back
        self._context = getattr(engine.model.config, "max_position_embeddings", None)
        engine.model.generate = self

    def __call__(
        self,
        inputs: torch.Tensor,
        generation_config: Any,
        streamer: Streamer | None = None,
        **kwargs: Any,
    ) -> Any:
        try:
            if self._context is not None:
                room = self._context - inputs.shape[1]
                if room < 1:
                    raise TooLong(
                        f"the conversation has {inputs.shape[1]} tokens, the context ends at "
                        f"{self._context}"
                    )
                generation_config.max_new_tokens = min(generation_config.max_new_tokens, room)
            return self._generate(
                inputs=inputs,
                generation_config=generation_config,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([self._stop]),
                **kwargs,
            )
        except Exception as error:
            if streamer is None:
                raise
            streamer.fail(error)

    def _stop(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((ids.shape[0],), self._taken_back(), device=ids.device, dtype=torch.bool)
