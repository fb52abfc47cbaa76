"""Do what the trainer does before its first step, without weights and without data: parse, load
the tokenizer, build the model of a view, add the adapter.

Runs in the training interpreter: python build_model.py REQUEST, a JSON file with `yaml` (the path
of a train.yaml as the trainer would read it), `meant` (the arguments it was made from), `on_cpu`,
`distributed` and `texts` (on which an export would compare tokenizers; none, and an export is not
foreseen). Standard output has one JSON object: the facts of each stage that was reached and, where
one raised, `stage` and `error`. `warnings` is what the libraries said on the way, as
[logger, text].

LLaMA-Factory's own functions do all of it. Three things differ from a run: tensors are on the meta
device (shapes and dtypes are real, no weight is read), whether a GPU is there is not asked, and
quantisation and sharding are left out once the arguments were parsed.
"""

import contextlib
import importlib.util
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from built_facts import Facts, adapted, meta_tensors, of_config, owners, report, rows_of
from tokenizer_facts import tokenizer_facts

os.environ.setdefault("DISABLE_VERSION_CHECK", "1")  # the doctor's rules compare versions
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ["HIP_VISIBLE_DEVICES"] = ""

_LOADED_OTHERWISE = ("quantization", "double_quantization", "deepspeed", "fsdp")
_SPEAKERS = ("llamafactory", "transformers", "peft", "accelerate")


class Hearing(logging.Handler):
    """What the libraries say at WARNING and above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[list[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append([record.name, record.getMessage()])

    def warn(
        self,
        message: Any,
        category: Any,
        filename: str,
        lineno: int,
        file: Any = None,
        line: Any = None,
    ) -> None:
        self.said.append([Path(filename).stem, f"{category.__name__}: {message}"])


class Failed(Exception):
    """A stage that the trainer would not get through."""


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    try:
        yield
    except Failed:
        raise
    except (Exception, SystemExit) as error:
        raise Failed(name, said(error)) from error


def said(error: BaseException) -> str:
    """An exception with the one that it hides: LLaMA-Factory's "Failed to load tokenizer" has no
    reason of its own.
    """
    text = f"{type(error).__name__}: {error}"
    while error.__cause__ is not None:
        error = error.__cause__
        if error.__cause__ is None:
            text += f" ({type(error).__name__}: {error})"
    return text


def answer(request: Facts) -> Facts:
    """Every stage in the trainer's order."""
    hearing = Hearing()
    facts: Facts = {"warnings": hearing.said}
    warnings.showwarning = hearing.warn
    warnings.simplefilter("default", UserWarning)
    try:
        with stage("arguments"):
            arguments = read(request, facts)
            listen(hearing)
            parsed = parse(arguments, request)
        model_args, data_args, _, finetuning_args, _ = parsed
        with stage("tokenizer"):
            from llamafactory.model import load_tokenizer

            tokenizer = load_tokenizer(model_args)["tokenizer"]
        with stage("template"):
            facts["tokens"] = fit_template(tokenizer, data_args)
        facts["generation"] = generation_fault(model_args.model_name_or_path)
        with stage("model"):
            facts |= build(tokenizer, model_args, finetuning_args)
        if "adapted" in facts and request["texts"]:
            facts |= foreseen(tokenizer, model_args, request["texts"], facts)
    except Failed as failure:
        facts["stage"], facts["error"] = failure.args
    finally:
        for name in _SPEAKERS:
            logging.getLogger(name).removeHandler(hearing)
    return facts


def listen(hearing: Hearing) -> None:
    import llamafactory.extras.logging  # noqa: F401
    import transformers  # noqa: F401

    for name in _SPEAKERS:
        logging.getLogger(name).addHandler(hearing)


def read(request: Facts, facts: Facts) -> Facts:
    """The arguments as LLaMA-Factory's own reader gets them."""
    from omegaconf import OmegaConf

    arguments: Any = OmegaConf.to_container(OmegaConf.load(request["yaml"]))
    meant = request["meant"]
    facts["read_otherwise"] = [
        [name, meant.get(name), arguments.get(name)]
        for name in sorted(meant.keys() | arguments.keys())
        if repr(meant.get(name)) != repr(arguments.get(name))
    ]
    return arguments


def parse(arguments: Facts, request: Facts) -> Any:
    """As the trainer parses them, and once more without what a model is only loaded through."""
    import transformers.training_args
    from llamafactory.hparams import get_train_args
    from transformers import TrainingArguments
    from transformers.integrations.integration_utils import get_available_reporting_integrations
    from transformers.training_args import ParallelMode

    if request["distributed"]:
        TrainingArguments.parallel_mode = property(lambda self: ParallelMode.DISTRIBUTED)
    # a GPU is judged by the doctor, who knows it
    transformers.training_args.is_torch_tf32_available = lambda: not request["on_cpu"]
    arguments = {**arguments, "use_cpu": True}
    if "deepspeed" in arguments and importlib.util.find_spec("deepspeed") is None:
        del arguments["deepspeed"]
    if arguments.get("flash_attn") == "fa2":
        if importlib.util.find_spec("flash_attn") is None:
            raise ImportError("attention flash2 needs the package flash-attn")
        arguments["flash_attn"] = "disabled"  # its package asks for the GPU
    training_args = get_train_args(dict(arguments))[2]
    missing = set(training_args.report_to) - set(get_available_reporting_integrations())
    if missing:
        raise ImportError(f"report_to {', '.join(sorted(missing))} needs its package")
    if any(name.startswith(_LOADED_OTHERWISE) for name in arguments):
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        plain = {k: v for k, v in arguments.items() if not k.startswith(_LOADED_OTHERWISE)}
        return get_train_args(plain)
    return get_train_args(dict(arguments))


def fit_template(tokenizer: Any, data_args: Any) -> Facts:
    """The tokenizer before and after the template has added its tokens to it."""
    from llamafactory.data import get_template_and_fix_tokenizer

    before = {"vocabulary": len(tokenizer), "eos": tokenizer.eos_token, "pad": tokenizer.pad_token}
    known = set(tokenizer.get_vocab())
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    vocabulary = tokenizer.get_vocab()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    # a stop word that no slot writes (Llama 3's <|eom_id|>) reaches no row
    used = {tokenizer.eos_token, tokenizer.pad_token} | slot_tokens(template, added)
    return {
        "before": before,
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "stop": list(template.get_stop_token_ids(tokenizer)),
        "new": sorted(used & vocabulary.keys() - known),
        "highest": max(vocabulary.values(), default=0),
        "highest_ordinary": max((i for t, i in vocabulary.items() if t not in added), default=0),
        "used": {token: vocabulary[token] for token in sorted(filter(None, used))
                 if token in vocabulary},
    }  # fmt: skip


def generation_fault(folder: str) -> str:
    """Why transformers would not write the model's generation_config.json again; "" if it would.

    Loading it only warns, in a line that nobody sees.
    """
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_pretrained(folder).validate(strict=True)
    except ValueError as error:
        lines = [line.removeprefix("- ") for line in str(error).splitlines() if line[:2] == "- "]
        return lines[0] if lines else str(error)
    except Exception:  # there is none, or it is no JSON
        return ""
    return ""


def foreseen(tokenizer: Any, model_args: Any, texts: list[str], facts: Facts) -> Facts:
    """The tokenizer as an export would find it, or why it would not get through."""
    folder, rows = Path(model_args.model_name_or_path), facts["rows"]["embedding"]
    rows = max(rows, len(tokenizer)) if model_args.resize_vocab else rows
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as target:
            found = tokenizer_facts(
                folder, Path(target), tokenizer, facts["tokens"]["stop"], texts, rows
            )
            if not found["published"] and not (Path(target) / "tokenizer.json").is_file():
                return {"unexportable": "transformers writes no tokenizer.json for its tokenizer"}
    except Exception as error:
        return {"unexportable": said(error)}
    return {"tokenizer": found}


def slot_tokens(template: Any, added: set[str]) -> set[str]:
    """The added tokens that a template writes around turns."""
    texts: list[str] = []
    for name in ("format_user", "format_assistant", "format_system", "format_prefix"):
        for slot in getattr(template, name).slots:
            if isinstance(slot, str):
                texts.append(slot)
            elif isinstance(slot, dict):
                texts += [value for value in slot.values() if isinstance(value, str)]
    return {token for token in added if any(token in text for text in texts)}


def build(tokenizer: Any, model_args: Any, finetuning_args: Any) -> Facts:
    """LLaMA-Factory's load_model, with every tensor on the meta device."""
    import llamafactory.model.loader as loader
    import llamafactory.model.patcher as patcher
    import torch
    from llamafactory.model import load_model
    from transformers import PreTrainedModel

    facts: Facts = {}
    stock, real_adapter = PreTrainedModel.from_pretrained.__func__, loader.init_adapter
    real_resize = patcher.resize_embedding_layer

    def from_pretrained(cls: Any, folder: str, *inputs: Any, **kwargs: Any) -> Any:
        asked = kwargs.pop("output_loading_info", False)
        # transformers' own conversion and report, over tensors that have a shape and nothing else
        model, info = stock(
            cls, None, *inputs, **kwargs | {"state_dict": meta_tensors(Path(folder)),
            "device_map": {"": "meta"}, "ignore_mismatched_sizes": True,
            "output_loading_info": True},
        )  # fmt: skip
        facts.update(loaded=report(info), rows=rows_of(model), **of_config(model))
        return (model, info) if asked else model

    def init_adapter(config: Any, model: Any, *others: Any) -> Any:
        facts.update(base=sum(p.numel() for p in model.parameters()), modules=owners(model))
        try:
            with torch.device("meta"):
                return real_adapter(config, model, *others)
        except Exception as error:
            raise Failed("adapter", said(error)) from error

    def resize(model: Any, tokenizer: Any, *others: Any, **kwargs: Any) -> None:
        # its way of filling new rows needs the old ones
        facts["resized"] = len(tokenizer) > model.get_input_embeddings().weight.shape[0]

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    loader.init_adapter, patcher.resize_embedding_layer = init_adapter, resize
    try:
        model = load_model(tokenizer, model_args, finetuning_args, is_trainable=True)
    except Failed as failure:
        facts["stage"], facts["error"] = failure.args
        return facts
    finally:
        PreTrainedModel.from_pretrained = classmethod(stock)
        loader.init_adapter, patcher.resize_embedding_layer = real_adapter, real_resize
    facts["adapted"] = adapted(model)
    facts["trained_whole"] = _trained_whole(model)
    return facts


def _trained_whole(model: Any) -> list[str]:
    """The modules that peft trains itself, without an adapter."""
    names = [name for name, one in model.named_parameters() if one.requires_grad]
    whole = (
        name.partition(".modules_to_save.")[0] for name in names if ".modules_to_save." in name
    )
    return sorted({name.rpartition(".")[2] for name in whole})


def main() -> None:
    real_stdout = os.dup(1)
    os.dup2(2, 1)  # the libraries print
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        facts = answer(request)
    except ImportError as error:
        facts = {"stage": "arguments", "error": f"ImportError: {error}", "warnings": []}
    with os.fdopen(real_stdout, "w", encoding="utf-8") as out:
        json.dump(facts, out, default=str)
    os._exit(0)  # some packages hang in their exit handlers


if __name__ == "__main__":
    main()
