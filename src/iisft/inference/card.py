"""The model card of an export: what it was made of, and what was proven about its training."""

import time

from iisft import __version__
from iisft.inference.base_model import Source
from iisft.inference.selection import Chosen


def model_card(source: Source, chosen: Chosen, dtype: str, check: str) -> str:
    """README.md, with the front matter that hubs read (huggingface.co/docs/hub/model-cards)."""
    record = source.record
    preset, model, observed = record.preset, record.model, record.observed or {}
    facts = {
        "Base model": f"`{model.id}` ({model.architecture}, {model.parameters:,} parameters)",
        "Run": f"`{source.folder.id}`, preset `{record.preset_name}`, begun "
        f"{_date(record.created or 0.0)}",
        "Adapter": f"{_which(chosen)}, LoRA rank {preset['lora']['rank']}, alpha "
        f"{preset['lora']['alpha']}, "
        f"target {preset['lora']['target']}, merged into {dtype} weights",
        "Training data": "; ".join(
            f"`{one.name}`, {one.rows} rows, sha256 `{one.sha256}`" for one in record.data
        ),
        "Template": f"`{preset['model']['template']}` (LLaMA-Factory's; `chat_template.jinja` is "
        "it)",
        "Longest row": f"{preset['train']['cutoff_len']} tokens",
        "Proven in training": ", ".join(
            f"{name.replace('_', ' ')} {observed[name]}" for name in _PROVEN if name in observed
        )
        or "nothing was reported",
        "Learning rate": f"{preset['train']['learning_rate']:g}, {preset['train']['scheduler']}, "
        f"{preset['train']['epochs']:g} epochs",
        "Check of the merge": check,
        "Versions": ", ".join(
            f"{name} {record.packages[name]}" for name in _PACKAGES if name in record.packages
        )
        + f", iisft {__version__}",
    }
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {_yaml_text(model.id)}",
        "base_model_relation: finetune",
        "pipeline_tag: text-generation",
        "tags: [lora, llama-factory, iisft]",
        "---",
        "",
        f"# {source.folder.id}",
        "",
        f"{model.id} with the LoRA adapter of one run merged into its weights.",
        "",
        *(f"- **{name}**: {text}" for name, text in facts.items()),
        "",
        "The licence is that of the base model.",
        "",
    ]
    return "\n".join(lines)


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
    import json

    return json.dumps(text, ensure_ascii=False)
