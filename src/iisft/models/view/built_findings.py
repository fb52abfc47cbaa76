"""What speaks against a run, seen in the model that its trainer would build."""

import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from iisft.errors import Finding
from iisft.llamafactory.library_warnings import LIBRARY_WARNING, telling
from iisft.models.folder.checkpoint import Checkpoint
from iisft.models.folder.known import ends_of
from iisft.models.folder.manifest import repair_command
from iisft.models.view.built import Built
from iisft.models.view.support import DTYPES
from iisft.presets.schema import Preset

_NAMES_SAID = 3
_TYPO = 0.85  # likeness: gate_proj is no slip for v_proj
_LONGEST_WARNING = 300
# Their activations leave fp16's range (transformers#36822; LLaMA-Factory#7755: loss 0; #4202: NaN;
# unsloth-zoo#866: Gemma 4; ms-swift#8220: Qwen3.5 on a V100).
_BEYOND_FP16 = ("gemma2", "gemma3_text", "gemma4_text", "glm", "glm4", "qwen3_5_text")
_ATTENTION = {"eager": "eager", "sdpa": "sdpa"}
# Less is most likely not what was meant: all linear layers of a dense model are 60 % to 98 %.
_SMALL_SHARE = 0.5
_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}
_WORDS = ("embed_tokens", "embed_in", "embeddings", "lm_head", "wte")
_LARGE_GROUP = 0.2  # of the base, that no adapter reaches
_STAGES = {
    "arguments": ("trainer-refuses", "LLaMA-Factory refuses these arguments", "train.yaml"),
    "tokenizer": ("tokenizer-unloadable", "the tokenizer can't be loaded", "model"),
    "template": ("template-refused", "LLaMA-Factory can't use this template", "model.template"),
    "model": ("model-unbuildable", "the model can't be built", "model"),
    "adapter": ("adapter-impossible", "the adapter can't be added", "lora"),
}


def findings(
    built: Built, preset: Preset, checkpoint: Checkpoint, longest_row: int | None = None
) -> Iterator[Finding]:
    """Everything at once; `longest_row` in tokens, where it was counted."""
    facts = built.facts
    yield from _read_otherwise(facts)
    yield from _weights(facts, checkpoint)
    yield from _numbers(preset, checkpoint)
    for text in telling(facts["warnings"]):
        yield Finding(LIBRARY_WARNING, text[:_LONGEST_WARNING], where="model", severity="warn")
    if "tokens" in facts:
        yield from _ends(facts["tokens"], checkpoint)
    yield from _generation(facts.get("generation", ""), checkpoint)
    if "rows" in facts:
        yield from _embedding(facts, checkpoint)
        yield from _positions(facts, preset, checkpoint, longest_row)
        yield from _attention(facts, preset)
    if built.stage == "adapter" or "adapted" in facts:
        yield from _targets(facts, preset)
    if "adapted" in facts:
        yield from _share(facts, preset)
        yield from _tied(facts, preset)
    if built.stage:
        yield from _ended(built, preset)


def _ended(built: Built, preset: Preset) -> Iterator[Finding]:
    """The stage that the trainer would not get through, where no finding above says it better."""
    if built.stage == "adapter" and any(_targets(built.facts, preset)):
        return
    name, sentence, where = _STAGES.get(built.stage, _STAGES["model"])
    modules = {name.rpartition(".")[2] for name in built.facts.get("modules", {})}
    usual = ", ".join(one for one in _USUAL if one in modules)
    fix = f"--set 'lora.target=[{usual}]'" if built.stage == "adapter" and usual else ""
    if built.error.startswith("ImportError: cannot import name"):
        fix = "another model: LLaMA-Factory 0.9.5 asks transformers 5 for what it has no more"
    yield Finding(name, f"{sentence}: {built.error}", where=where, fix=fix)


def _read_otherwise(facts: Mapping[str, Any]) -> Iterator[Finding]:
    for name, meant, read in facts.get("read_otherwise", []):
        yield Finding(
            "argument-read-otherwise",
            f"LLaMA-Factory would read {name} as {read!r} instead of {meant!r}",
            where=f"train.yaml, {name}",
            fix="another value",
        )


def _weights(facts: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[Finding]:
    """transformers' own loading report: it fills what is missing with random numbers, and says so
    in a warning.
    """
    said = {
        "missing": "in no file, so that they would be random",
        "unexpected": "in the files and not in the model",
        "mismatched": "of another shape",
    }
    parts = []
    for kind, sentence in said.items():
        count, names = facts.get("loaded", {}).get(kind, (0, []))
        if count:
            parts.append(f"{count} {sentence} ({_few(names, count)})")
    if parts:
        yield Finding(
            "weights-differ",
            f"the files do not hold the {checkpoint.architecture} of config.json; tensors: "
            + "; ".join(parts),
            where=str(checkpoint.folder),
            fix=f"a whole checkpoint of this architecture: {repair_command(checkpoint.folder)}",
        )


def _numbers(preset: Preset, checkpoint: Checkpoint) -> Iterator[Finding]:
    """What the chosen attention leaves out, and what the chosen precision can't hold."""
    cap = checkpoint.config.get("attn_logit_softcapping")
    if cap and preset.attention == "sdpa":
        yield Finding(
            "attention-cap",
            f"{checkpoint.architecture} caps its attention at {cap}, which sdpa leaves out",
            where="attention",
            fix="attention: eager",
        )
    if preset.precision == "fp16" and checkpoint.model_type in _BEYOND_FP16:
        yield Finding(
            "beyond-fp16",
            f"activations of {checkpoint.model_type} leave the range of fp16: loss 0.0 or NaN",
            where="precision",
            fix="--set precision=fp32",
            severity="warn",
        )
    memory = DTYPES.get(preset.weights) or next(iter(checkpoint.dtypes), "")
    # float32 arithmetic keeps them, or was refused (refuse_inexact)
    rounds = preset.weights == "stored" and preset.precision != "fp32"
    wider = {
        dtype: count
        for dtype, count in checkpoint.dtypes.items()
        if rounds and _BITS.get(dtype, 0) > _BITS.get(memory, 64)
    }
    if wider:
        stored = ", ".join(f"{count:,} {dtype}" for dtype, count in wider.items())
        yield Finding(
            "weights-rounded",
            f"the files hold {stored} parameters among {memory} ones: weights stored rounds them",
            where="weights",
            fix="--set weights=fp32",
            severity="warn",
        )


def _ends(tokens: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[Finding]:
    """A base model that learns to end its answers as the template does: other tools look for the
    end in generation_config.
    """
    path = checkpoint.folder / "generation_config.json"
    ends = ends_of(checkpoint.folder)
    if tokens["new"]:
        yield Finding(
            "template-new-tokens",
            f"the template adds {', '.join(tokens['new'])} to the tokenizer: this model has never "
            "seen it, and no adapter trains its row",
            where="model.template",
            fix="the template of this model's family (iisft model show)",
            severity="warn",
        )
    taught = [
        token
        for token, number in tokens["used"].items()
        if number in tokens["stop"] and number not in ends
    ]
    if ends and taught:
        yield Finding(
            "ends-differ",
            f"answers are taught to end with {', '.join(taught)}; the model's generation_config "
            f"ends at {tokens['before']['eos']} (token {', '.join(map(str, ends))})",
            where=str(path),
            severity="info",
        )


def _generation(fault: str, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Sampling settings without do_sample, as Llama 2 was published with: what writes the model
    again ends at them.
    """
    if fault:
        yield Finding(
            "generation-config-invalid",
            f"transformers calls the model's generation_config invalid: {fault}",
            where=str(checkpoint.folder / "generation_config.json"),
            fix='write "do_sample": true into it, or take its sampling settings out; training '
            "does not read it, tools that save the exported model do",
            severity="warn",
        )


def _embedding(facts: Mapping[str, Any], checkpoint: Checkpoint) -> Iterator[Finding]:
    """A token beyond the embedding ends the trainer in its first forward."""
    rows, tokens = facts["rows"]["embedding"], facts.get("tokens", {})
    if facts.get("resized") or not tokens:
        return
    beyond = [token for token, number in tokens["used"].items() if number >= rows]
    if tokens["highest_ordinary"] >= rows:
        text = f"the tokenizer has tokens up to {tokens['highest_ordinary']}"
    elif beyond:
        text = f"the template needs {', '.join(beyond)}"
    else:
        return
    new = [token for token in beyond if token in tokens["new"]]
    yield Finding(
        "embedding-too-small",
        f"{text}, the embedding has {rows} rows",
        where=str(checkpoint.folder),
        fix="the template of this model's family (iisft model show)"
        if new
        else "the tokenizer and the weights of one and the same model",
    )


def _positions(
    facts: Mapping[str, Any], preset: Preset, checkpoint: Checkpoint, longest_row: int | None
) -> Iterator[Finding]:
    tables = facts["rows"]["positions"]
    limit = min(tables.values(), default=facts.get("max_positions"))
    cutoff = preset.train.cutoff_len
    needed = cutoff if longest_row is None else min(cutoff, longest_row)
    if not isinstance(limit, int) or needed <= limit or preset.llamafactory.get("rope_scaling"):
        return
    what = f"cutoff_len {cutoff}" if longest_row is None else f"the longest row has {needed} tokens"
    yield Finding(
        "positions-exceeded",
        f"{what}, the model was made for {limit} positions"
        + ("; it has learned none beyond" if tables else ""),
        where=str(checkpoint.folder / "config.json"),
        fix=f"--set train.cutoff_len={limit}",
        severity="error" if tables and longest_row is not None else "warn",
    )


def _attention(facts: Mapping[str, Any], preset: Preset) -> Iterator[Finding]:
    wanted = _ATTENTION.get(preset.attention)
    if wanted is not None and facts.get("attention") != wanted:
        yield Finding(
            "attention-replaced",
            f"LLaMA-Factory takes {facts.get('attention')} for this model instead of {wanted}",
            where="attention",
            fix="attention: eager"
            if facts.get("attention") == "eager"
            else "another model, or another attention",
        )


_ALL = "--set lora.target=all"


def _targets(facts: Mapping[str, Any], preset: Preset) -> Iterator[Finding]:
    """peft objects only when no target at all is found: one of two trains half an adapter."""
    target = preset.lora.target
    names = target.split(",") if isinstance(target, str) else target
    modules = {name.rpartition(".")[2] for name in facts.get("modules", {})}
    reached = set((facts.get("adapted") or {}).get("modules", {}))
    for name in (name.strip() for name in names if target != "all"):
        if name in reached or (not reached and name in modules):
            continue
        near = difflib.get_close_matches(name, modules, n=1, cutoff=_TYPO)
        yield Finding(
            "lora-target",
            f"the model as it is built has no module {name} for lora.target; it has "
            + ", ".join(sorted(modules)),
            where="lora.target",
            fix=corrected_target(names, name, near[0] if near else ""),
        )


def corrected_target(names: Iterable[str], wrong: str, meant: str) -> str:
    """The --set that names another module, or all where none is near."""
    found = [meant if name.strip() == wrong else name.strip() for name in names]
    target = f"lora.target=[{', '.join(found)}]"
    return f"--set {shlex.quote(target)}" if meant else _ALL


def _share(facts: Mapping[str, Any], preset: Preset) -> Iterator[Finding]:
    """Experts that transformers keeps as one tensor get no adapter, and nothing says so."""
    base, owners, adapted = facts["base"], facts["modules"], facts["adapted"]
    share = Built(facts).adapted_share or 0.0
    left_out = {
        name: count / max(base, 1)
        for name, count in owners.items()
        if name not in adapted["parameters"] and not name.endswith(_WORDS)
    }
    large = {name: part for name, part in left_out.items() if part >= _LARGE_GROUP}
    if preset.lora.target == "all" and large and share < _SMALL_SHARE:
        groups = ", ".join(f"{name} ({part:.0%})" for name, part in sorted(large.items()))
        reached = ", ".join(sorted(adapted["modules"]))
        nf4 = " and is not quantised: nf4 takes linear layers" if preset.weights == "nf4" else ""
        yield Finding(
            "adapter-share",
            f"lora.target all reaches {share:.0%} of the parameters ({reached}); {groups} gets no "
            f"adapter{nf4}",
            where="lora.target",
            fix=f"name what you mean, so that the preset says it: --set 'lora.target=[{reached}]'",
            severity="warn",
        )


def _tied(facts: Mapping[str, Any], preset: Preset) -> Iterator[Finding]:
    """peft trains copies: the two matrices that were one part (peft#2777)."""
    whole = facts.get("trained_whole", [])
    words = [name for name in whole if name in _WORDS]
    if facts.get("tied") and words:
        yield Finding(
            "tied-head-trained",
            f"embedding and head are one matrix in this model; training {' and '.join(words)} "
            "parts them, and a tool that ties them again loses what was trained",
            where="llamafactory.additional_target",
            fix="drop additional_target, or take a model whose head is its own",
            severity="warn",
        )


def _few(names: Sequence[str], count: int) -> str:
    more = f" and {count - _NAMES_SAID} more" if count > _NAMES_SAID else ""
    return ", ".join(names[:_NAMES_SAID]) + more
