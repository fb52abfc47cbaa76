"""iisft preset: list, show, validate, copy, schema."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console, options
from iisft.cli.options import JsonOption, QuietOption, SetOption, complete_presets
from iisft.errors import ExitCode, IisftError, InputError
from iisft.secrets import redact_all
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.llamafactory.explain import Explanation
    from iisft.presets.checking import LoadedPreset

preset_app = options.group("""List, show, check and copy presets: the recipes of runs.

\b
Examples:
  iisft preset list
  iisft preset show mi50 --explain
""")

PresetArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A preset's name or file.", autocompletion=complete_presets
    ),
]


@preset_app.command("list")
def list_presets(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """List the shipped presets and your own, by hardware.

    \b
    Examples:
      iisft preset list
    """
    from iisft.presets import documents

    rows = []
    workspace = Workspace.current()
    for name, file in sorted(documents.available(workspace).items()):
        try:
            values = documents.read_document(str(file), workspace).values
        except InputError as error:
            values = {"summary": f"broken: {error.where}: {error.message}"}
        rows.append(
            {
                "name": name,
                "summary": str(values.get("summary", "")),
                "hardware": _hardware(values.get("hardware")),
                "file": str(file),
            }
        )
    rows.sort(key=lambda row: (row["hardware"], row["name"]))
    if as_json:
        console.out_json(rows)
    elif quiet:
        for row in rows:
            console.out(row["name"])
    else:
        console.table(
            ((row["hardware"], row["name"], row["summary"]) for row in rows),
            ("MADE FOR", "PRESET", "WHAT IT IS"),
        )


def _hardware(values: Any) -> str:
    """amd gfx906 32 GiB x 2: vendor first, so that sorting groups alike ones."""
    if not isinstance(values, dict):
        return "-"
    words = [values.get("vendor"), values.get("arch"), values.get("memory_gib")]
    vendor, arch, memory = (
        str(word) if isinstance(word, str | int | float) and word else "" for word in words
    )
    name = " ".join(dict.fromkeys(filter(None, (vendor, arch, f"{memory} GiB" if memory else ""))))
    gpus = values.get("gpus")
    return f"{name} x {gpus}" if isinstance(gpus, int) and gpus > 1 else name


@preset_app.command()
def show(
    name: PresetArgument,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each value's reason and what it becomes.")
    ] = False,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a preset with everything it extends and every default.

    \b
    Examples:
      iisft preset show mi50 --explain
      iisft preset show mi50 --set lora.rank=16
    """
    from iisft.llamafactory.explain import explain as explain_values
    from iisft.presets.yaml12 import render_yaml

    loaded = _load(name, overrides or [])
    values = redact_all(loaded.preset.model_dump(mode="json"))
    if as_json:
        console.out_json(
            {"explanations": [value.as_json() for value in explain_values(loaded)]}
            if explain
            else values
        )
    elif explain:
        _print_explanations(loaded, explain_values(loaded))
    else:
        console.out(render_yaml(values).rstrip())
    console.findings(loaded.warnings)


@preset_app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Preset files or names.")],
    as_json: JsonOption = False,
) -> None:
    """Check presets: syntax, keys, types, rules, arguments.

    All errors at once, each with its file and line. Where the model is here, LLaMA-Factory's own
    code reads the arguments and builds it without weights. Exit 3 when a preset is wrong.

    \b
    Examples:
      iisft preset validate presets/mine.yaml
    """
    from iisft.errors import CheckFailed
    from iisft.llamafactory.environment import env_findings
    from iisft.runs.plan.building import of_preset
    from iisft.runs.plan.preflight import extra_argument_findings

    results = []
    for file in files:
        try:
            loaded = _load(file, [], judge=False)
            found = [*loaded.warnings, *env_findings(loaded), *extra_argument_findings(loaded)]
            if all(finding.severity != "error" for finding in found):
                found += of_preset(loaded.preset, Workspace.current(), console.say)
        except CheckFailed as error:
            found = list(error.findings)
        except IisftError as error:
            found = [error.finding]
        results.append(
            {"file": file, "ok": all(f.severity != "error" for f in found), "findings": found}
        )
        console.findings(found)
        if not as_json:
            console.out(f"{file}: {'ok' if results[-1]['ok'] else 'wrong'}")
    if as_json:
        console.out_json([{**r, "findings": [f.as_json() for f in r["findings"]]} for r in results])  # type: ignore[attr-defined]
    if not all(result["ok"] for result in results):
        raise typer.Exit(ExitCode.INPUT)


@preset_app.command()
def copy(
    name: PresetArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The new file, for example presets/mine.yaml.")
    ],
) -> None:
    """Copy a preset's file for you to change.

    A file of your own may hold only `extends: NAME` and what differs.

    \b
    Examples:
      iisft preset copy mi50 presets/mine.yaml
    """
    from iisft import files
    from iisft.cli import console
    from iisft.presets import documents

    source = documents.find(name, Workspace.current())
    if file.is_file():
        raise console.exists(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = files.read_text(source)
    except OSError as error:
        raise console.unwritable(file, error, InputError, "copy-write") from error
    console.write(file, text, InputError, "copy-write")
    console.say(f"{file}: edit it, then iisft preset validate {shlex.quote(str(file))}")


@preset_app.command()
def schema() -> None:
    """Print the JSON Schema of preset files, for editors.

    \b
    Examples:
      iisft preset schema > preset.schema.json
    """
    from iisft.llamafactory.explain import schema as preset_schema

    console.out_json(preset_schema())


def _load(name: str, overrides: list[str], *, judge: bool = True) -> "LoadedPreset":
    from iisft.presets import checking, documents

    document = documents.read_document(name, Workspace.current())
    document.change(overrides)
    return checking.check(document, judge=judge)


def _print_explanations(loaded: "LoadedPreset", explanations: "list[Explanation]") -> None:
    console.out(f"{loaded.document.name}: {loaded.preset.summary}")
    ran = loaded.preset.run_on
    console.out(f"run for real on: {'; '.join(ran) if ran else 'nothing yet'}")
    for item in explanations:
        if item.key in ("summary", "run_on"):
            continue
        console.out()
        console.out(f"{item.key}: {_short(item.value)}   ({item.source})")
        for text in filter(None, (item.reason, item.meaning)):
            console.out(f"    {text}")
        for name, value in item.arguments.items():
            console.out(f"    -> {name}: {_short(value)}")


def _short(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
