"""A run's model as it was trained, through LLaMA-Factory's own loader, for the other scripts.

Runs in the training interpreter. The script's first line of standard input is the specification
(JSON): {"arguments": LLaMA-Factory's, "adapter": folder or null, "autocast": "float16", "bfloat16"
or null, "one_device": whether it fits on one GPU, "discards_thoughts": whether the training left
thoughts out of earlier answers}. Standard output carries one JSON object per line
and nothing else; everything that is printed goes to stderr.

LLaMA-Factory merges an adapter into the weights in their own dtype (model/adapter.py), which rounds
it. Here it stays beside them, as in training, and the arithmetic is the view's. The end of standard
input ends the process.
"""

import contextlib
import functools
import importlib
import json
import os
import queue
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from constants_iisft import ARITHMETIC_KEY

Spec = dict[str, Any]


class Link:
    """The connection to the process that started this one."""

    def __init__(self) -> None:
        # libraries print to descriptor 1: the messages keep a copy of it
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._arrived: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        # sys.stdin's lock would be held at the end of the interpreter
        while chunk := os.read(0, 65536):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._arrived.put(json.loads(line))
        os._exit(0)

    def receive(self) -> Any:
        return self._arrived.get()

    def arrived(self) -> bool:
        """Whether a message is waiting."""
        return not self._arrived.empty()

    def send(self, **message: Any) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()


def load(spec: Spec) -> Any:
    """LLaMA-Factory's ChatModel of the run; `.engine` has model, tokenizer and template."""
    from llamafactory.chat import chat_model, hf_engine
    from llamafactory.model import load_model

    # the engine loads by a name that it imported into its own module
    hf_engine.load_model = functools.partial(_load_model, spec, load_model)
    chat = chat_model.ChatModel(known_arguments(spec))
    template = chat.engine.template
    template.encode_oneturn = functools.partial(_as_trained, template, spec["discards_thoughts"])
    return chat


def _as_trained(
    template: Any,
    discarding: bool,
    tokenizer: Any,
    messages: list[dict[str, str]],
    system: str | None = None,
    tools: str | None = None,
) -> tuple[list[int], list[int]]:
    """Prompt and answer of a conversation as the trainer tokenises it.

    LLaMA-Factory's own encode_oneturn() of templates with thoughts (data/template.py) leaves the
    thoughts of earlier answers out, which its training has put in.
    """
    pairs = template.encode_multiturn(tokenizer, messages, system, tools, discarding)
    before = [ids for pair in pairs[:-1] for side in pair for ids in side]
    return before + pairs[-1][0], pairs[-1][1]


def known_arguments(spec: Spec) -> dict[str, Any]:
    """The run's arguments that inference knows too."""
    from llamafactory.hparams import parser

    # parse_args raises on names that it does not know (hparams/parser.py)
    known = {name for group in parser._INFER_ARGS for name in group.__dataclass_fields__}
    return {name: value for name, value in spec["arguments"].items() if name in known}


def _load_model(
    spec: Spec,
    load_model: Callable[..., Any],
    tokenizer: Any,
    model_args: Any,
    finetuning_args: Any,
    **kwargs: Any,
) -> Any:
    from transformers import GenerationConfig

    cuda = torch.cuda.is_available()
    if spec["one_device"] or not cuda:
        model_args.device_map = {"": torch.device("cuda", 0) if cuda else torch.device("cpu")}
    if spec["autocast"]:
        model_args.compute_dtype = getattr(torch, spec["autocast"])
    model = load_model(tokenizer, model_args, finetuning_args, **kwargs)
    placed = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if cuda and placed & {"cpu", "disk"}:
        raise MemoryError("the GPUs' memory is too small for the model")
    if spec["autocast"]:
        _autocast(model, getattr(torch, spec["autocast"]))
    # the published one may sample and penalise repetition; only the request counts
    model.generation_config = GenerationConfig()
    if spec["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, spec["adapter"], is_trainable=False)
    return model.requires_grad_(False).eval()


def _autocast(model: Any, dtype: torch.dtype) -> None:
    """As accelerate prepares fp16 and bf16 training: autocast inside forward, float32 outside."""
    from accelerate.utils import convert_outputs_to_fp32

    inside = torch.autocast(model.device.type, dtype=dtype)(model.forward.__func__)
    model.forward = types.MethodType(convert_outputs_to_fp32(inside), model)


def swap_adapter(model: Any, folder: str) -> None:
    """Put the weights of another checkpoint of the same run into the loaded adapter."""
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    found = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    if found.unexpected_keys or any("lora_" in name for name in found.missing_keys):
        raise ValueError(f"{folder} holds a different adapter than the run's")


@torch.inference_mode()
def observe(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What a forward of this model computes in, in the terms of the training's proof."""
    package = types.ModuleType("iisft_child")
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules["iisft_child"] = package
    view = importlib.import_module("iisft_child.witness_iisft")
    base = base_of(model)
    backbone = getattr(base, base.base_model_prefix)
    seen = {"attention_dtype": None, "linear_dtype": None}

    def note(key: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            seen[key] = view.plain(getattr(module, "compute_dtype", None) or tensor.dtype)

        return hook

    def describe(module: Any, args: Any, output: Any) -> None:
        seen.update(
            view.describe(base, getattr(base.config, ARITHMETIC_KEY, None), output[0].device)
        )

    attention, linear = view.first_attention(backbone)
    hooks = [backbone.register_forward_hook(describe)]
    for key, module in (("attention_dtype", attention), ("linear_dtype", linear)):
        if module is not None:
            hooks.append(module.register_forward_hook(note(key)))
    base(input_ids=torch.tensor([[tokenizer.eos_token_id]], device=base.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def agreed(link: Link, engine: Any) -> None:
    """Report what the model computes in, and wait until the other side has found it right."""
    link.send(kind="observed", proof=observe(engine.model, engine.tokenizer))
    link.receive()


def base_of(model: Any) -> Any:
    """The model without its adapter's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def stop_ids(engine: Any) -> list[int]:
    return engine.template.get_stop_token_ids(engine.tokenizer)


def is_out_of_memory(error: RuntimeError) -> bool:
    text = str(error)
    # "can't allocate memory": torch's CPU allocator (c10/core/impl/alloc_cpu.cpp)
    return (
        isinstance(error, torch.cuda.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )
