"""The view: links to a model's weights beside a changed config.json, for LLaMA-Factory to load.

LLaMA-Factory has no switch for the dtype of the base weights or for the arithmetic; it follows
config.json. The view's config.json says what the preset wants and names the modelling file that
proves it. The original folder is never touched, no weight is copied, and none of the model's own
code runs unless the preset trusts it.
"""

import copy
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from iisft.child.constants_iisft import (
    ARITHMETIC_KEY,
    ATTENTION_KEY,
    EAGER_BLOCKS,
    KEPT_FLOAT32_KEY,
    LEFT_OUT_KEY,
    NAMES_KEY,
)
from iisft.errors import InputError
from iisft.files import read_json_object, read_text, write_json_atomically, write_text_atomically
from iisft.models.folder.checkpoint import PURE_DATA_JSON, Checkpoint, auto_maps, json_files
from iisft.models.folder.text_part import LEFT_OUT, NAMES
from iisft.models.view.support import (
    AUTO_CLASS,
    DTYPES,
    kept_float32,
    own_code_class,
    refuse_inexact,
    refuse_unprovable,
    stored_dtype,
    top_auto_map,
)

MODULE = "modeling_iisft"
CODE_FILE = f"{MODULE}.py"
COMPANIONS = (
    "attention_iisft.py",
    "clock_iisft.py",
    "constants_iisft.py",
    "products_iisft.py",
    "step_iisft.py",
    "stopping_iisft.py",
    "trackers_iisft.py",
    "witness_iisft.py",
)

_NO_CODE = "TRUSTED: Any = None"  # the line of the modelling file that trusted code replaces
_TRUSTED_LINE = re.compile(r"^from \.\w+ import \w+ as TRUSTED$", re.MULTILINE)

Arithmetic = Literal["float32", "native"]

# What a tokenizer and generation need. Pickles, code and adapters in the folder are left out.
LINKED_SUFFIXES = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".vocab"})
NEVER_LINKED = frozenset({"config.json", "adapter_config.json", "model.safetensors.index.json"})


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """Everything a view consists of: building it is writing `texts` and making `links`.

    `expected_weights_dtype` is what the trainer must report for the frozen parameters (torch's
    name; with nf4 only the linear layers, the rest are `config["dtype"]`),
    `expected_compute_dtype` what its linear and attention layers must return.
    """

    config: dict[str, Any]
    arithmetic: Arithmetic
    links: dict[str, Path]
    texts: dict[str, str]
    expected_weights_dtype: str
    expected_compute_dtype: str


def plan_view(
    checkpoint: Checkpoint,
    *,
    precision: str,
    weights: str,
    trust_remote_code: bool,
) -> ViewPlan:
    """Plan the view by which LLaMA-Factory holds `weights` and computes in `precision`.

    Nothing is written.

    Args:
        checkpoint: what inspect_checkpoint found.
        precision: "fp32", "fp16", "bf16" or "weights" (in the weights' own dtype).
        weights: "stored", "fp32", "fp16", "bf16" or "nf4".
        trust_remote_code: whether the preset allows the model's own Python files.

    Raises:
        InputError: the precision can't be held for this model; the message says why, `fix` what to
            do instead.
    """
    refuse_unprovable(checkpoint)
    own_class = own_code_class(checkpoint, trust_remote_code)
    with_code = trust_remote_code and bool(checkpoint.code_files)
    memory = DTYPES.get(weights) or stored_dtype(checkpoint)
    arithmetic: Arithmetic = "float32" if precision == "fp32" and memory != "float32" else "native"
    if arithmetic == "float32":
        refuse_inexact(checkpoint, weights, memory, own_class)
    class_name = checkpoint.architecture if own_class is None else own_class.rpartition(".")[2]
    config = _config(checkpoint, class_name, memory, with_code=with_code)
    config[ARITHMETIC_KEY] = arithmetic
    # elsewhere a wider norm would widen what comes after it
    exact = arithmetic == "float32" and weights == "stored"
    if exact and (kept := kept_float32(checkpoint, memory)):
        config[KEPT_FLOAT32_KEY] = kept
    texts = {
        "config.json": _json_text(config),
        CODE_FILE: _code(own_class),
        **{name: _child_source(name) for name in COMPANIONS},
    }
    texts |= {} if with_code else _harmless_jsons(checkpoint.folder)
    return ViewPlan(
        config=config,
        arithmetic=arithmetic,
        links=_links(checkpoint, texts, with_code=with_code),
        texts=texts,
        expected_weights_dtype="nf4" if weights == "nf4" else memory,
        expected_compute_dtype=DTYPES.get(precision, memory),
    )


def _config(
    checkpoint: Checkpoint, class_name: str, memory: str, *, with_code: bool
) -> dict[str, Any]:
    """config.json with the class of the view, and the model's own code only where it is trusted."""
    own_map = top_auto_map(checkpoint) if with_code else {}
    config = copy.deepcopy(checkpoint.config)
    if not with_code:
        _drop_auto_maps(config)
    config |= {
        "dtype": memory,  # transformers 5 reads this one
        "torch_dtype": memory,  # transformers 4 and LLaMA-Factory (patcher.py) read this one
        "auto_map": own_map | {AUTO_CLASS: f"{MODULE}.{class_name}"},
    }
    if checkpoint.is_part:
        config |= {NAMES_KEY: NAMES, LEFT_OUT_KEY: list(LEFT_OUT)}
    return config


def attention_keys(attention: str) -> dict[str, Any]:
    """How a view's config says that its model computes attention in blocks: LLaMA-Factory knows no
    name for it.
    """
    return {ATTENTION_KEY: EAGER_BLOCKS} if attention == EAGER_BLOCKS else {}


def with_step(plan: ViewPlan, keys: Mapping[str, Any]) -> ViewPlan:
    """The view with what its config tells child/step_iisft.py of a training step."""
    if not keys:
        return plan
    config = {**plan.config, **keys}
    return replace(plan, config=config, texts=plan.texts | {"config.json": _json_text(config)})


def build_view(plan: ViewPlan, folder: Path) -> None:
    """Make the view at `folder`, replacing an older view. A half-built one is never seen.

    Raises:
        InputError: something other than a view is at `folder`.
        OSError: it can't be written.
    """
    if folder.is_symlink() or (folder.exists() and not _is_view(folder)):
        raise InputError(
            "view-occupied",
            f"{folder} exists and is not a view made by iisft",
            where=str(folder),
            fix=f"move {folder} away",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # beside its place, for rename(2) only works within one file system
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh, old = temporary / "new", temporary / "old"
        fresh.mkdir()
        for name, text in plan.texts.items():
            (fresh / name).write_text(text, encoding="utf-8")
        for name, target in plan.links.items():
            (fresh / name).symlink_to(target)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # removes links, never their targets


def strange_code(view: Path, model: Path, *, trusted: bool) -> list[str]:
    """Python files of a view that are neither this iisft's own nor links to its model's."""
    own = {name: _child_source(name) for name in (CODE_FILE, *COMPANIONS)}
    found = []
    for path in sorted(view.glob("*.py")):
        if path.name in own:
            text = _read(path)
            if trusted:
                text = _TRUSTED_LINE.sub(_NO_CODE, text)
            if text != own[path.name] or path.is_symlink():
                found.append(path.name)
        elif not (trusted and path.is_symlink() and path.resolve().parent == model.resolve()):
            found.append(path.name)
    return found + [name for name in own if not (view / name).exists()]


def renew_code(view: Path) -> None:
    """Put this iisft's own code into a view that an older one built.

    Raises:
        OSError: it can't be written.
    """
    trusted = _TRUSTED_LINE.search(_read(view / CODE_FILE))
    for path in view.glob("*.py"):
        if path.name not in (CODE_FILE, *COMPANIONS) and not path.is_symlink():
            path.unlink()
    for name in (CODE_FILE, *COMPANIONS):
        text = _child_source(name)
        if trusted and name == CODE_FILE:
            text = text.replace(f"\n{_NO_CODE}", f"\n{trusted[0]}")
        write_text_atomically(view / name, text)


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError):
        return ""


def restore_base_model_name(output: Path, view: Path, original: str) -> None:
    """Let all adapters of a run name the real base model instead of the view.

    Missing or torn files, which a stopped run may have, are left alone.

    Raises:
        OSError: a file can't be written.
    """
    names = sorted({str(view), str(view.absolute()), os.path.realpath(view)}, key=len, reverse=True)
    for folder in (output, *sorted(output.glob("checkpoint-*"))):
        config = read_json_object(folder / "adapter_config.json")
        if config is not None and config.get("base_model_name_or_path") in names:
            write_json_atomically(
                folder / "adapter_config.json", {**config, "base_model_name_or_path": original}
            )
        card = folder / "README.md"
        text = changed = _read(card)
        for name in names:
            changed = changed.replace(name, original)
        if changed != text:
            write_text_atomically(card, changed)


def _harmless_jsons(folder: Path) -> dict[str, str]:
    """JSON files without their auto_maps: trust_remote_code would run a tokenizer's code too."""
    texts: dict[str, str] = {}
    for name, content in json_files(folder):
        if name not in NEVER_LINKED and next(auto_maps(content), None) is not None:
            _drop_auto_maps(content)
            texts[name] = _json_text(content)
    return texts


def _drop_auto_maps(value: Any) -> None:
    for holder in list(auto_maps(value)):
        del holder["auto_map"]


def _links(checkpoint: Checkpoint, texts: dict[str, str], *, with_code: bool) -> dict[str, Path]:
    names = set(checkpoint.weight_files)
    if checkpoint.weight_files != ("model.safetensors",):
        names.add("model.safetensors.index.json")
    readable = {name for name, _ in json_files(checkpoint.folder)} | PURE_DATA_JSON
    for path in checkpoint.folder.iterdir():
        wanted = path.suffix in LINKED_SUFFIXES and path.name not in NEVER_LINKED
        if wanted and path.is_file() and (path.suffix != ".json" or path.name in readable):
            names.add(path.name)
        if with_code and path.suffix == ".py" and path.name not in (CODE_FILE, *COMPANIONS):
            names.add(path.name)
    return {name: checkpoint.folder / name for name in sorted(names - texts.keys())}


def _code(own_class: str | None) -> str:
    source = _child_source(CODE_FILE)
    if own_class is None:
        return source
    module, _, name = own_class.rpartition(".")
    placeholder, trusted = f"\n{_NO_CODE}", f"\nfrom .{module} import {name} as TRUSTED"
    if source.count(placeholder) != 1:
        raise RuntimeError(f"{CODE_FILE} has lost the place for trusted code")
    return source.replace(placeholder, trusted)


def _child_source(name: str) -> str:
    return resources.files("iisft").joinpath("child", name).read_text(encoding="utf-8")


def _is_view(folder: Path) -> bool:
    config = read_json_object(folder / "config.json") if folder.is_dir() else None
    return config is not None and ARITHMETIC_KEY in config


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
