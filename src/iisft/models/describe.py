"""A model folder as `models` and `model show` describe it, from small files and headers; `model
show` also asks the trainer's code to build it without weights.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iisft.errors import Finding, IisftError, InputError
from iisft.files import read_json_object
from iisft.json_values import text_of
from iisft.llamafactory import chat_template
from iisft.llamafactory.arguments import compile_arguments
from iisft.llamafactory.fitting_template import guess
from iisft.llamafactory.interpreter import inspect, training_interpreter
from iisft.models.folder import manifest as manifests
from iisft.models.folder.checkpoint import (
    Checkpoint,
    checkpoint_findings,
    code_files,
    inspect_checkpoint,
)
from iisft.models.folder.manifest import ManifestFile
from iisft.models.view import built, built_findings
from iisft.models.view.build import plan_view
from iisft.presets.schema import Preset

# precision and weights as presets name them
_PRECISIONS = {
    "fp32 over stored": ("fp32", "stored"),
    "fp32": ("fp32", "fp32"),
    "fp16": ("fp16", "fp16"),
    "bf16": ("bf16", "bf16"),
}


@dataclass(frozen=True)
class Description:
    """One folder.

    Numbers are 0 and texts empty where the folder doesn't say or can't be read; findings say why.
    """

    folder: Path
    source: str = ""
    endpoint: str = ""
    repo: str = ""
    revision: str = ""
    commit: str = ""
    licence: str = ""
    files: tuple[ManifestFile, ...] = ()
    architecture: str = ""
    model_type: str = ""
    part: str = ""  # the text model's class, of a folder that holds more
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    hidden_size: int = 0
    vocabulary: int = 0
    context: int = 0
    tied_embeddings: bool | None = None
    template: str | None = None
    template_note: str = ""
    chat_template: bool = False
    precisions: dict[str, str] = field(default_factory=dict)
    adapters: dict[str, int] | None = None
    adapted_share: float | None = None
    code_files: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def faulty(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    @property
    def state(self) -> str:
        """One or a few words for a list."""
        if any(finding.id == "model-incomplete" for finding in self.findings):
            return "incomplete"
        errors = sum(finding.severity == "error" for finding in self.findings)
        return f"{errors} fault{'s' if errors > 1 else ''}" if errors else "ok"

    def as_json(self) -> dict[str, Any]:
        known = {
            name: getattr(self, name)
            for name in (
                "source", "endpoint", "repo", "revision", "commit", "licence", "architecture",
                "model_type", "parameters", "dtypes", "layers", "heads", "kv_heads", "hidden_size",
                "vocabulary", "context", "tied_embeddings", "template", "template_note",
                "chat_template", "precisions", "adapters", "adapted_share", "state", "size",
            )
        }  # fmt: skip
        return {
            "dir": str(self.folder),
            **known,
            "code_files": list(self.code_files),
            "files": [file.as_json() for file in self.files],
            "findings": [finding.as_json() for finding in self.findings],
        }


def describe_built(folder: Path, say: Callable[[str], None]) -> Description:
    """The same with what LLaMA-Factory makes of it, where it is sound and an interpreter trains.

    Raises:
        InputError: there is no such folder.
    """
    described = describe(folder)
    if described.faulty:
        return described
    try:
        checkpoint = inspect_checkpoint(folder)
        view = plan_view(checkpoint, precision="weights", weights="stored", trust_remote_code=False)
        interpreter = inspect(training_interpreter())
    except IisftError:
        return described
    if {"llamafactory", "torch"} - interpreter.packages.keys():
        return described
    preset = _plain_preset(described)
    arguments = compile_arguments(
        preset, model=folder, dataset_dir=folder, output_dir=folder, on_cpu=False
    )
    answer = built.ask(
        view, checkpoint, arguments, interpreter, on_cpu=False, distributed=False, say=say
    )
    if isinstance(answer, str):
        return described
    told = [
        finding
        for finding in built_findings.findings(answer, preset, checkpoint)
        if finding.severity != "info"
    ]
    return replace(
        described,
        adapters=answer.adapted,
        adapted_share=answer.adapted_share,
        findings=(*described.findings, *told),
    )


def _plain_preset(described: Description) -> Preset:
    """An adapter on all linear layers, and nothing that a model could object to."""
    return Preset.model_validate(
        {
            "summary": "model show",
            "hardware": {"vendor": "nvidia", "arch": "sm_80", "gpus": 1, "memory_gib": 80},
            "model": {"id": str(described.folder), "template": described.template or "empty"},
            "precision": "weights",
            "weights": "stored",
            "attention": "eager",
            "train": {"cutoff_len": 16, "learning_rate": 1e-5, "accumulation": 1},
            "data": {"name": "rows"},
        }
    )


def describe(folder: Path) -> Description:
    """Describe a folder; what is wrong with it becomes findings.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(
            "model-missing",
            f"there is no model folder {folder}",
            where=str(folder),
            fix="iisft models",
        )
    findings = checkpoint_findings(folder)
    try:
        checkpoint: Checkpoint | None = inspect_checkpoint(folder)
    except InputError:
        checkpoint = None  # the findings say why
    config = read_json_object(folder / "config.json") or {}
    inner = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    fitting = guess(folder)
    model_type = text_of(inner, "model_type")
    heads = _number(inner, "num_attention_heads", "n_head")
    return Description(
        folder=folder.absolute(),
        **_origin(folder),
        architecture=text_of(config, "architectures"),
        model_type=model_type,
        part=checkpoint.architecture if checkpoint and checkpoint.is_part else "",
        parameters=checkpoint.parameters if checkpoint else 0,
        dtypes=checkpoint.dtypes if checkpoint else {},
        layers=_number(inner, "num_hidden_layers", "n_layer"),
        heads=heads,
        kv_heads=_number(inner, "num_key_value_heads") or heads,
        hidden_size=_number(inner, "hidden_size", "n_embd"),
        vocabulary=_number(inner, "vocab_size"),
        context=_number(inner, "max_position_embeddings", "n_positions"),
        tied_embeddings=_tied(config, checkpoint),
        template=fitting.name,
        template_note=fitting.how,
        chat_template=bool(chat_template.text_of(folder)),
        precisions=_precisions(checkpoint) if checkpoint else {},
        code_files=code_files(folder),
        findings=tuple(findings),
    )


def model_folders(root: Path) -> Iterator[Path]:
    """The model folders below `root`, sorted: OWNER/NAME, or NAME."""
    for owner in sorted(path for path in root.glob("*") if path.is_dir()):
        if _is_model(owner):
            yield owner
        else:
            yield from sorted(path for path in owner.glob("*") if path.is_dir() and _is_model(path))


def _is_model(folder: Path) -> bool:
    known = (folder / "config.json").exists() or manifests.read(folder) is not None
    return known or any(folder.glob("*.safetensors"))


def _origin(folder: Path) -> dict[str, Any]:
    manifest = manifests.read(folder)
    if manifest is None:
        paths = sorted(
            path for path in folder.glob("*") if path.is_file() and not path.name.startswith(".")
        )
        return {"files": tuple(ManifestFile(path.name, path.stat().st_size) for path in paths)}
    names = ("source", "endpoint", "repo", "revision", "commit", "licence", "files")
    return {name: getattr(manifest, name) for name in names}


def _number(config: dict[str, Any], *names: str) -> int:
    return next((config[name] for name in names if isinstance(config.get(name), int)), 0)


def _tied(config: dict[str, Any], checkpoint: Checkpoint | None) -> bool | None:
    if isinstance(said := config.get("tie_word_embeddings"), bool):
        return said
    return (
        None
        if checkpoint is None
        else not any(name.endswith("lm_head.weight") for name in checkpoint.tensors)
    )


def _precisions(checkpoint: Checkpoint) -> dict[str, str]:
    """What the weights would be for each precision of a preset, or why it can't be held."""
    found = {}
    for name, (precision, weights) in _PRECISIONS.items():
        try:
            view = plan_view(
                checkpoint, precision=precision, weights=weights, trust_remote_code=False
            )
        except InputError as error:
            found[name] = f"no: {error.message}"
        else:
            exact = "exact float32 arithmetic over " if view.arithmetic == "float32" else ""
            found[name] = f"{exact}{view.expected_weights_dtype} weights"
    return found
