"""What chat and the API need beyond LLaMA-Factory's engine. See run_model.py.

An error ends a stream, a context has an end, and a request can be taken back.

LLaMA-Factory generates in a thread (chat/hf_engine.py); if that fails, its stream waits forever.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteriaList, TextIteratorStreamer


class TooLong(ValueError):
    """The conversation fills the model's context."""


class Streamer(TextIteratorStreamer):
    """A stream of text that raises the error that ended it."""

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
    """Replaces a model's generate.

    Args:
        engine: LLaMA-Factory's.
        taken_back: tells whether the current request is no longer wanted.
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
                left = self._context - inputs.shape[1]
                if left < 1:
                    raise TooLong(
                        f"the conversation has {inputs.shape[1]} tokens, the context ends at "
                        f"{self._context}"
                    )
                generation_config.max_new_tokens = min(generation_config.max_new_tokens, left)
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
