"""Write the pages of docs/reference/ from the code.

Run it after a change of an option, a preset key, a rule or a known failure: tests/docs/ compares
the pages with what it would write.
"""

import json
import sys
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import typer
import yaml

from iisft import gpu_table
from iisft.cli.app import app
from iisft.cli.options import PREPARE, TRAIN, USE
from iisft.errors import ExitCode
from iisft.llamafactory.explain import explain, schema
from iisft.llamafactory.failures import KNOWN
from iisft.machine.doctor.engine import all_rules
from iisft.presets import checking, documents
from iisft.presets.schema import Preset
from iisft.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reference"
JSON_KEYS = Path(__file__).with_name("json_keys.yaml")
NOTE = "<!-- Written by scripts/make_reference.py: change the code, then run that script. -->"

EXIT_CODES = {
    ExitCode.OK: "Done. For `plan` also a run that does not fit: that is an answer.",
    ExitCode.FAILED: "Training failed or was not what the preset says; or a bug in iisft.",
    ExitCode.USAGE: "The command line is wrong.",
    ExitCode.INPUT: "A preset, a model folder or data is wrong or missing.",
    ExitCode.ENVIRONMENT: "The machine or its packages can't do it, or the run does not fit.",
    ExitCode.TRANSFER: "A download or a staging step could not be finished or verified.",
    ExitCode.RUN_STATE: "No such run, a name already taken, or a run in the wrong state.",
    ExitCode.INTERRUPTED: "Stopped by Ctrl-C or `iisft stop`.",
}


def pages() -> dict[str, str]:
    """Every page by its file name."""
    written = {
        "commands.md": commands(),
        "preset.md": preset_keys(),
        "shipped-presets.md": shipped_presets(),
        "rules.md": doctor_rules(),
        "failures.md": known_failures(),
        "exit-codes.md": exit_codes(),
        "json.md": json_keys(),
        "gpus.md": gpus(),
    }
    return {
        name: f"{title(text)}\n\n{NOTE}\n\n{body(text).strip()}\n" for name, text in written.items()
    }


def title(text: str) -> str:
    return text.partition("\n")[0]


def body(text: str) -> str:
    return text.partition("\n")[2]


def commands() -> str:
    root: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "`-h` and `--help` show the same for each.", ""]
    for heading in (PREPARE, TRAIN, USE):
        lines += [f"## {heading}", ""]
        for name, command in root.commands.items():
            if command.rich_help_panel == heading:
                for path, one in walk(command, name):
                    lines += command_lines(path, one)
    return "\n".join(lines)


def walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {name}")


def command_lines(path: str, command: Any) -> list[str]:
    told, _, examples = command.help.partition("\b\n")
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(argument_name(p) for p in arguments)
    if hasattr(command, "commands"):
        usage = f"{usage} COMMAND ..." if usage else "COMMAND ..."
    lines = [f"### iisft {path}", "", *told.strip().splitlines(), ""]
    lines += ["```text", f"iisft {path} [OPTIONS] {usage}".rstrip(), "```", ""]
    lines += [f"- `{argument_name(p)}`: {p.help}" for p in arguments]
    lines += [option_line(p) for p in command.params if p.param_type_name == "option"]
    lines += ["", "```bash", *(line.strip() for line in examples.splitlines()[1:]), "```", ""]
    return lines


def argument_name(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def option_line(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
    default, known = option.default, ""
    if isinstance(default, Enum):
        known = " | ".join(member.value for member in type(default))
        default = default.value
    value = "" if option.is_flag else f" `{option.metavar or known or option.name.upper()}`"
    tail = " Required." if option.required else ""
    if default is not None and default != () and not option.is_flag:
        tail = f" Default: `{default}`."
    return f"- {names}{value}: {option.help}{tail}"


def preset_keys() -> str:
    lines = [
        "# Keys of a preset",
        "",
        "A preset is a YAML file. Unknown keys are refused. `extends: NAME` takes everything from",
        "another preset; the file then holds only what differs. Numbers follow YAML 1.2: `1e-5` is",
        "a number.",
        "",
        '"In mi50" is what a key becomes in LLaMA-Factory\'s `train.yaml` for the preset `mi50`;',
        "`iisft preset show NAME --explain` says it for any preset.",
    ]
    document = schema()
    sections = document["$defs"]
    lines += ["", "## Top level", ""]
    for name, field in document["properties"].items():
        if "$ref" not in field and name != "extends":
            lines += key_lines(name, field, name in Preset.model_json_schema()["required"])
    for name, field in document["properties"].items():
        if "$ref" in field:
            section = sections[field["$ref"].rpartition("/")[2]]
            lines += ["", f"## {name}", "", section["description"], ""]
            for key, inner in section["properties"].items():
                lines += key_lines(f"{name}.{key}", inner, key in section.get("required", ()))
    return "\n".join(lines)


def key_lines(key: str, field: dict[str, Any], required: bool) -> list[str]:
    default = f"default `{json.dumps(field['default'])}`" if "default" in field else "default empty"
    default = "required" if required else default
    lines = [f"- `{key}` ({kind_of(field)}; {default}): {field['description']}"]
    if become := mi50_arguments().get(key):
        values = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in become.items())
        lines.append(f"  In mi50: {values}.")
    return lines


@cache
def mi50_arguments() -> dict[str, dict[str, Any]]:
    return {one.key: one.arguments for one in explain(shipped("mi50"))}


def kind_of(field: dict[str, Any]) -> str:
    """What a value may be, from its JSON Schema."""
    if "anyOf" in field:
        return " or ".join(kind_of(one) for one in field["anyOf"])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " ".join(f"`{choice}`" for choice in field["enum"])
    kind = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "array": "list",
        "object": "mapping",
        "null": "null",
    }[field["type"]]
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    said = [f"{word} {field[name]:g}" for name, word in limits.items() if name in field]
    return " ".join([kind, " and ".join(said)]).strip()


def shipped(name: str) -> Any:
    file = documents.shipped_presets_folder() / f"{name}.yaml"
    return checking.check(documents.read_document(str(file), Workspace.current()), judge=False)


def shipped_presets() -> str:
    lines = ["# Shipped presets", ""]
    for file in sorted(documents.shipped_presets_folder().glob("*.yaml")):
        preset = shipped(file.stem).preset
        gpus = preset.hardware.gpus
        lines += [f"## {file.stem}", "", f"{preset.summary}.", ""]
        lines += [
            f"- model: {preset.model.id}, template `{preset.model.template}`",
            f"- hardware: {gpus or 'no'} x {preset.hardware.arch}, "
            f"{preset.hardware.memory_gib:g} GiB each",
            f"- precision `{preset.precision}`, weights `{preset.weights}`, "
            f"attention `{preset.attention}`, LoRA rank {preset.lora.rank}",
            f"- global batch {preset.global_batch(max(gpus, 1))}, cutoff_len "
            f"{preset.train.cutoff_len}",
            f"- run for real on: {'; '.join(preset.run_on)}",
            "",
        ]
    return "\n".join(lines)


def doctor_rules() -> str:
    lines = [
        "# Rules",
        "",
        "`iisft env-check` applies every rule to the machine and the preset; `train` does the same",
        "before it starts. `preset validate` applies those that need no machine. An error stops a",
        "run, a warning does not.",
        "",
    ]
    for one in all_rules():
        head = one.id if one.id == one.name else f"{one.id} {one.name}"
        lines += [f"## {head}", "", one.explanation, ""]
        lines += [f"Applies to: {one.applies}. Basis: {one.basis}. Source: {one.source}.", ""]
        if one.preset_id:
            lines += [f"Without a machine, from the preset alone: `{one.preset_id}`.", ""]
    return "\n".join(lines)


def known_failures() -> str:
    lines = [
        "# Known failures",
        "",
        "What iisft recognises at the end of a failed trainer's log. `iisft status` shows the",
        "cause and the fix; a failure that may pass is tried again from the last checkpoint.",
        "",
    ]
    for one in KNOWN:
        again = "tried again" if one.passing else "not tried again"
        lines += [f"## {one.id}", "", one.cause, ""]
        lines += [
            f"- fix: {one.fix}",
            f"- kind: {one.kind}, {again}",
            f"- source: {one.source}",
            "",
        ]
    return "\n".join(lines)


def exit_codes() -> str:
    lines = ["# Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {int(code)} | {EXIT_CODES[code]} |" for code in ExitCode]
    lines += [
        "",
        "`iisft wait` ends as its run did: 0 finished, 1 failed or lost, 130 stopped. With several",
        "findings the smallest code wins: wrong input is said before a wrong machine.",
    ]
    return "\n".join(lines)


def json_keys() -> str:
    lines = [
        "# JSON output",
        "",
        "Every command that prints data takes `--json`: one document on stdout, nothing else",
        "there; talk and warnings go to stderr. The keys below stay; others may join them. A key",
        "marked with `?` is not always there. A command that couldn't do its job prints",
        '`{"error": {"code", "message", "where", "fix"}}` instead.',
        "",
    ]
    for command, keys in described_json().items():
        many = keys.pop("[]", None)
        lines += [f"## iisft {command}", ""]
        lines += ["A list; each entry has:", ""] if many is not None else []
        for key, text in (many or keys).items():
            lines.append(f"- `{key}`: {text}")
        lines.append("")
    return "\n".join(lines)


def described_json() -> dict[str, Any]:
    """The keys of each command's document with what they mean."""
    found: dict[str, Any] = yaml.safe_load(JSON_KEYS.read_text(encoding="utf-8"))
    return found


def gpus() -> str:
    lines = [
        "# GPUs that a plan knows",
        "",
        "What `iisft plan --device` takes. Rates in TFLOP/s are peaks; where a whole training step",
        "was measured, the plan uses that instead and says so.",
        "",
        "| device | card | arch | GiB | fp32 | fp16 | bf16 | GB/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in gpu_table.DEVICES:
        bf16 = f"{one.bf16:g}" if one.bf16 else "none"
        lines.append(
            f"| `{one.key}` | {one.name} | {one.arch} | {one.memory_gib:g} | {one.fp32:g} "
            f"| {one.half:g} | {bf16} | {one.bandwidth:g} |"
        )
    return "\n".join(lines)


def main() -> int:
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (TARGET / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
