"""The files of an export beside its weights: configuration, tokenizer, prompts, model card."""

import contextlib
import json
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from iisft import __version__, files
from iisft.errors import EnvironmentFault
from iisft.inference.base_model import Source
from iisft.inference.export_plan import ADAPTER_ONLY, GGUF, MERGED, PROBE_ROWS, Check, Export
from iisft.inference.worker import started
from iisft.llamafactory import chat_files
from iisft.llamafactory.chat_template import PROCESSOR_FILES
from iisft.llamafactory.environment import NO_GPU
from iisft.models import exported
from iisft.models.exported import TokenizerFacts
from iisft.runs.record.selection import ADAPTER, Chosen


def merge(export: Export, made: Path, view: Path, env: dict[str, str]) -> TokenizerFacts:
    """Merged weights, or the adapter alone, with every small file."""
    source, alone = export.source, export.format == ADAPTER_ONLY
    texts = chat_files.prompts(export.template, export.options, export.tokens)
    resized = source.record.train_yaml.get("resize_vocab")
    spec = source.loading(view, export.chosen, max_new_tokens=1) | {
        "model": str(source.checkpoint.folder),
        "stored": export.stored,
        "dtype": export.dtype,
        "trusted": source.record.setting("model.trust_remote_code"),
        "target": str(made),
        "texts": [*texts, *_sample(source)],
        "rows": None if resized else source.checkpoint.config.get("vocab_size"),
        "part": source.checkpoint.part,
    }
    spec |= {"adapter": None} if alone else {}
    with started(source, "merge_adapter.py", spec, command="export", env=env | NO_GPU) as worker:
        merged = worker.receive()
    facts = TokenizerFacts(**merged["tokenizer"])
    try:
        if alone:
            _copy_adapter(export, made)
        else:
            _as_published(export, made, merged, facts)
        exported.write_tokenizer(source.checkpoint.folder, made, facts, export.chat.text)
        if not alone:
            (made / "Modelfile").write_text(_modelfile(export, facts, "."), encoding="utf-8")
    except OSError as error:
        raise unwritable(made, error) from error
    return facts


def _modelfile(export: Export, facts: TokenizerFacts, weights: str) -> str:
    return chat_files.modelfile(
        export.template,
        export.options,
        export.tokens,
        weights=weights,
        context=int(export.source.record.setting("train.cutoff_len")),
        adds_bos=facts.adds_bos,
    )


def _sample(source: Source) -> list[str]:
    """Some rows as they stand: texts on which two tokenizers are compared."""
    file = source.folder.dataset / f"{source.record.data[0].name}.jsonl"
    with contextlib.suppress(OSError), files.open_regular(file) as stream:
        lines = zip(range(PROBE_ROWS), files.lines_of(stream), strict=False)
        return [line.decode("utf-8", "replace") for _, line in lines]
    return []


def _copy_adapter(export: Export, made: Path) -> None:
    """peft's folder, as vLLM's LoRA takes it too: the base model by its name in a hub, if it has
    one.
    """
    assert export.chosen.adapter is not None
    shutil.copyfile(export.chosen.adapter / ADAPTER, made / ADAPTER)
    config = files.read_json_object(export.chosen.adapter / "adapter_config.json") or {}
    base = export.source.record.model
    named = base.id if not Path(base.id).is_absolute() else str(export.source.checkpoint.folder)
    changed = {"base_model_name_or_path": named, "inference_mode": True, "auto_mapping": None}
    files.write_json_atomically(made / "adapter_config.json", config | changed)


def _as_published(
    export: Export, made: Path, merged: dict[str, Any], facts: TokenizerFacts
) -> None:
    """The base model's configuration, generation settings and code, but for what was changed."""
    original = export.source.checkpoint
    files.write_json_atomically(
        made / "config.json",
        exported.config(original, export.dtype, rows=merged["rows"], tied=merged["tied"]),
    )
    files.write_json_atomically(
        made / "generation_config.json", exported.generation_config(original.folder, facts)
    )
    others = PROCESSOR_FILES if original.is_part else ()
    for name in (*others, *original.code_files):
        if (original.folder / name).is_file():
            shutil.copyfile(original.folder / name, made / name)


def complete(export: Export, made: Path, check: Check | None, facts: TokenizerFacts) -> None:
    try:
        if export.format == GGUF:
            (weights,) = made.glob("*.gguf")
            text = _modelfile(export, facts, f"./{weights.name}")
            (made / "Modelfile").write_text(text, encoding="utf-8")
        generation = exported.generation_config(export.source.checkpoint.folder, facts)
        files.write_text_atomically(
            made / "README.md", model_card(export, check, exported.samples(generation))
        )
    except OSError as error:
        raise unwritable(made, error) from error


def unwritable(place: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        "export-unwritable",
        f"the merged model can't be written: {error.strerror}; nothing was left behind",
        where=str(place),
        fix="free some space, or -o on another disk",
    )


def model_card(export: Export, check: Check | None, sampling: str) -> str:
    """README.md, with the front matter that hubs read (huggingface.co/docs/hub/model-cards)."""
    run, model = export.source.folder.id, export.source.record.model
    lines = [
        "---",
        f"library_name: {_LIBRARIES[export.format]}",
        f"base_model: {_yaml_text(model.id)}",
        f"base_model_relation: {_RELATIONS[export.format]}",
        "pipeline_tag: text-generation",
        "tags: [lora, llama-factory, iisft]",
        "---",
        "",
        f"# {run}",
        "",
        f"{model.id} with the LoRA adapter of one run, {_made_of(export)}.",
        "",
        *_usage(export),
        *(f"- **{name}**: {text}" for name, text in _facts(export, check, sampling).items()),
        "",
        "The licence is that of the base model.",
        "",
    ]
    return "\n".join(lines)


def _facts(export: Export, check: Check | None, sampling: str) -> dict[str, str]:
    source, chosen, chat = export.source, export.chosen, export.chat
    record = source.record
    preset, model, observed = record.preset, record.model, record.observed or {}
    return {
        "Base model": f"`{model.id}` ({model.architecture}, {model.parameters:,} parameters)",
        "Run": f"`{source.folder.id}`, preset `{record.preset_name}`, begun "
        f"{_date(record.created or 0.0)}",
        "Adapter": f"{_which(chosen)}, LoRA rank {preset['lora']['rank']}, alpha "
        f"{preset['lora']['alpha']}, "
        f"target {preset['lora']['target']}, {_made_of(export)}",
        "Training data": "; ".join(
            f"`{one.name}`, {one.rows} rows, sha256 `{one.sha256}`" for one in record.data
        ),
        "Template": f"`{preset['model']['template']}` of LLaMA-Factory; the chat template is "
        f"{chat.how}, and writes the prompts of the training",
        "Tools": _TOOLS[chat.tools],
        "Answers": "judged greedy"
        + (
            f"; generation_config.json samples, as the base model's does ({sampling})"
            if sampling
            else ""
        ),
        "Longest row": f"{preset['train']['cutoff_len']} tokens",
        "Proven in training": ", ".join(
            f"{name.replace('_', ' ')} {observed[name]}" for name in _PROVEN if name in observed
        )
        or "nothing was reported",
        "Learning rate": f"{preset['train']['learning_rate']:g}, {preset['train']['scheduler']}, "
        f"{preset['train']['epochs']:g} epochs",
        "Check of the export": f"{check.sentence}; {check.of_prompts}"
        if check
        else "none was made",
        "Versions": ", ".join(
            f"{name} {record.packages[name]}" for name in _PACKAGES if name in record.packages
        )
        + f", iisft {__version__}",
    }


_LIBRARIES = {MERGED: "transformers", ADAPTER_ONLY: "peft", GGUF: "gguf"}
_RELATIONS = {MERGED: "finetune", ADAPTER_ONLY: "adapter", GGUF: "quantized"}
_TOOLS = {
    "trained": "written as in training",
    "own": "not trained; written as the base model's chat template does",
    "refused": "refused by the chat template, which can't write them as in training",
}


# what --max-lora-rank takes (MaxLoRARanks in vllm/config/lora.py)
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def _made_of(export: Export) -> str:
    if export.format == ADAPTER_ONLY:
        return "not merged"
    into = f"merged into {export.dtype} weights"
    return into + (f", written as {export.quant}" if export.format == GGUF else "")


def _usage(export: Export) -> list[str]:
    """How to start an adapter that is not merged; the rest needs no words."""
    if export.format != ADAPTER_ONLY:
        return []
    rank, name = export.source.record.preset["lora"]["rank"], export.source.folder.id
    most = next((known for known in _VLLM_RANKS if known >= rank), rank)
    words = ["vllm", "serve", export.source.record.model.id, "--enable-lora"]
    words += ["--max-lora-rank", str(most), "--lora-modules", f"{name}=THIS_FOLDER"]
    words += ["--chat-template", "THIS_FOLDER/chat_template.jinja"]
    return ["```bash", shlex.join(words), "```", ""]


_PROVEN = ("weights_dtype", "compute_dtype", "attention", "global_batch", "rows")
_PACKAGES = ("llamafactory", "torch", "transformers", "peft")


def _which(chosen: Chosen) -> str:
    return "the final one" if chosen.which == "final" else f"checkpoint-{chosen.which}"


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return "an unknown day"


def _yaml_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
