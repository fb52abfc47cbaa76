"""iisft models, iisft model show."""

from typing import TYPE_CHECKING, Annotated

import typer

from iisft.cli import console, options
from iisft.cli.options import JsonOption, QuietOption
from iisft.errors import ExitCode
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.models.describe import Description

model_app = options.group("""Inspect one model folder.

\b
Example:
  iisft model show Qwen/Qwen2.5-7B-Instruct
""")


def complete_models() -> list[str]:
    models = Workspace.current().models
    return sorted(str(path.relative_to(models)) for path in models.glob("*/*") if path.is_dir())


def models(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the models in this workspace.

    \b
    Examples:
      iisft models
      iisft models --json
    """
    from iisft.models import describe
    from iisft.models.folder.manifest import gb

    found = [
        describe.describe(folder) for folder in describe.model_folders(Workspace.current().models)
    ]
    root = Workspace.current().models
    if as_json:
        console.out_json(
            [{"id": str(one.folder.relative_to(root)), **one.as_json()} for one in found]
        )
    elif quiet:
        for one in found:
            console.out(str(one.folder.relative_to(root)))
    else:
        rows = [
            (
                str(one.folder.relative_to(root)),
                _count(one.parameters),
                "+".join(one.dtypes) or "-",
                gb(one.size),
                one.source or "-",
                one.state,
            )
            for one in found
        ]
        console.table(rows, ("MODEL", "PARAMETERS", "DTYPE", "SIZE", "SOURCE", "STATE"))


@model_app.command()
def show(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A folder, or OWNER/NAME.", autocompletion=complete_models
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show parameters, dtypes, template and faults of a model folder.

    It reads JSON files and safetensors headers. With a training interpreter, LLaMA-Factory builds
    the model without weights; no code of the model runs.

    \b
    Examples:
      iisft model show Qwen/Qwen2.5-7B-Instruct
      iisft model show /data/qwen --json
    """
    from iisft.models import describe

    described = describe.describe_built(Workspace.current().model_folder(model), console.say)
    console.findings(described.findings)
    if as_json:
        console.out_json(described.as_json())
    else:
        _print(described)
    if described.faulty:
        raise typer.Exit(ExitCode.INPUT)


def _print(one: "Description") -> None:
    from iisft.models.folder.manifest import gb

    heads = f"{one.heads} heads" + (
        f", {one.kv_heads} for keys and values" if one.kv_heads != one.heads else ""
    )
    shape = f"{one.layers} layers, {heads}, hidden {one.hidden_size}" + (
        f", context {one.context}" if one.context else ""
    )
    dtypes = ", ".join(f"{dtype} {_count(count)}" for dtype, count in one.dtypes.items())
    lines = {
        "folder": str(one.folder),
        "architecture": f"{one.architecture} ({one.model_type})" if one.architecture else "-",
        **(
            {"trained as": f"{one.part}: its text model alone, which is counted here"}
            if one.part
            else {}
        ),
        "parameters": f"{one.parameters:,} ({_count(one.parameters)})" if one.parameters else "-",
        "stored as": dtypes or "-",
        "shape": shape if one.layers else "-",
        "vocabulary": f"{one.vocabulary or 'unknown'}, embeddings "
        f"{'tied' if one.tied_embeddings else 'not tied'}",
        "template": f"{one.template or 'none known'}: {one.template_note}",
        "size": f"{gb(one.size)} in {len(one.files)} files",
        "from": _origin(one),
        "licence": one.licence or "-",
    }
    if one.adapters and one.adapted_share is not None:
        parts = ", ".join(f"{name} {count}" for name, count in one.adapters.items())
        lines["adapters"] = f"{parts}: {one.adapted_share:.0%} of the parameters (lora.target: all)"
    console.out(one.repo or one.folder.name)
    for name, text in lines.items():
        console.out(f"  {name:<13} {text}")
    for name, text in one.precisions.items():
        console.out(f"  {'precision':<13} {name}: {text}")


def _origin(one: "Description") -> str:
    if not one.source:
        return "unknown (no manifest)"
    pinned = one.commit or one.revision
    return f"{one.source}, {one.repo}" + (f" at {pinned}" if pinned else "")


def _count(parameters: int) -> str:
    """7.62 B, 494 M; a dash for none."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name}"
    return str(parameters) if parameters else "-"
