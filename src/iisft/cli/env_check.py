"""iisft env-check: the doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, complete_presets
from iisft.errors import ExitCode, Finding, InputError, UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.machine.doctor.engine import Case, Diagnosis
    from iisft.machine.facts.machine import Machine


def env_check(
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help="Also what this preset needs.", autocompletion=complete_presets
        ),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compute on every GPU, and let them exchange data.")
    ] = False,
    collect: Annotated[
        Path | None,
        typer.Option(metavar="FILE.tar.gz", help="Pack what was read, to be diagnosed elsewhere."),
    ] = None,
    machine_from: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE_OR_DIR", help="Diagnose a packed machine instead."),
    ] = None,
    fix_plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the fixes as a shell script.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="ID", help="What a rule means and where it comes from.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: GPUs, driver, links, permissions, packages.

    Exit 4 when something would fail.
    """
    if explain is not None:
        _explain(explain, as_json=as_json)
        return
    if machine_from is not None and (deep or collect):
        raise UsageError(
            "from-alone",
            "--from looks at another machine: it goes with neither --deep nor --collect",
        )
    from iisft.machine.doctor import bundle, engine, inspect
    from iisft.machine.facts.reader import Reader

    workspace = Workspace.current()
    reader, notes = Reader(), list[Finding]()
    if machine_from is not None:
        machine = bundle.unpack(machine_from)
    else:
        machine = inspect.this_machine(workspace.root, reader)
        machine, notes = inspect.inspected(machine, console.say, fresh=True)
    case, objections = _case(machine, preset, workspace)
    if deep:
        case = _deep(case)
        machine = case.machine
    diagnoses = engine.diagnose(case)
    said = {name for one in diagnoses for name in one.rule.replaces}
    notes += [one for one in objections if one.id not in said]
    if collect is not None:
        _write(collect, lambda: bundle.pack(machine, reader, collect.absolute()))
        console.say(
            f"{collect}: {len(reader.files)} files and the interpreter's report; it holds no secret"
        )
    if fix_plan is not None:
        _write_fix_plan(fix_plan, diagnoses, machine)
    ok = all(one.seen.severity != "error" for one in diagnoses) and all(
        note.severity != "error" for note in notes
    )
    if as_json:
        console.out_json(_document(case, diagnoses, notes, ok=ok))
    else:
        _print(case, diagnoses, notes)
    if not ok:
        raise typer.Exit(ExitCode.ENVIRONMENT)


def _case(
    machine: "Machine", preset: str | None, workspace: Workspace
) -> "tuple[Case, list[Finding]]":
    """What would run: the preset, its model's configuration where that is known, and whether the
    plan says it fits.
    """
    from iisft.machine.doctor.engine import Case

    if preset is None:
        return Case(machine), []
    from iisft.runs.plan.make import make_plan
    from iisft.runs.plan.request import Request

    plan = make_plan(Request(preset), workspace, gpus=machine.visible)
    case = Case(
        machine,
        plan.preset,
        plan.placement.ranks,
        model=plan.facts.config if plan.facts else {},
        fits=plan.fits,
        need_gib=plan.forecast.peak_gib if plan.forecast else None,
    )
    return case, list(plan.loaded.warnings)


def _deep(case: "Case") -> "Case":
    from dataclasses import replace

    from iisft.machine.doctor import deep, inspect

    machine = case.machine
    if machine.interpreter is None or not case.torch:
        console.say("--deep needs a torch that can be imported: nothing was computed")
        return case
    results = deep.run(machine.interpreter, deep.checks(case), console.say)
    inspect.remember_deep(machine, results)
    return replace(case, machine=replace(machine, deep=results))


def _write_fix_plan(file: Path, diagnoses: "list[Diagnosis]", machine: "Machine") -> None:
    from iisft import files
    from iisft.machine.doctor import fix_plan

    text = fix_plan.render(diagnoses, machine)
    _write(file, lambda: files.write_text_atomically(file.absolute(), text))
    console.say(f"{file}: read it, then bash {file}")


def _write(file: Path, write: Any) -> None:
    try:
        write()
    except OSError as error:
        raise InputError(
            "file-write", f"can't be written: {error.strerror}", where=str(file)
        ) from error


def _document(
    case: "Case", diagnoses: "list[Diagnosis]", notes: list[Finding], *, ok: bool
) -> dict[str, Any]:
    from iisft.machine.doctor.summary import facts

    found = [one.as_json() for one in diagnoses]
    found += [
        {**note.as_json(), "name": note.id, "evidence": note.where, "basis": "observed"}
        for note in notes
    ]
    return {
        "ok": ok,
        "findings": found,
        "machine": facts(case.machine),
        "deep": list((case.machine.deep or {}).get("results", [])),
    }


def _print(case: "Case", diagnoses: "list[Diagnosis]", notes: list[Finding]) -> None:
    from iisft.machine.doctor.summary import lines

    for name, text in lines(case.machine):
        console.out(f"{name:<8} {text}")
    console.out()
    counts = dict.fromkeys(("error", "warn", "info"), 0)
    for severity in counts:
        for one in (one for one in diagnoses if one.seen.severity == severity):
            counts[severity] += 1
            title = (
                one.rule.id if one.rule.id == one.rule.name else f"{one.rule.id} {one.rule.name}"
            )
            inferred = " (inferred, not documented)" if one.rule.basis == "inferred" else ""
            console.finding(
                severity,
                f"{title}: {one.seen.message}{inferred}",
                one.seen.evidence,
                one.seen.fix.text,
            )
        for note in (note for note in notes if note.severity == severity):
            counts[severity] += 1
            console.finding(severity, f"{note.id}: {note.message}", note.where, note.fix)
    if case.machine.deep and case.machine.deep.get("results"):
        _print_deep(case.machine.deep)
    console.out(
        ", ".join(
            f"{count} {word}{'' if count == 1 else 's'}"
            for word, count in zip(("error", "warning", "note"), counts.values(), strict=True)
        )
        + ("; iisft env-check --explain ID says more about one" if diagnoses else "")
    )


def _print_deep(deep: Any) -> None:
    """A table of what was measured."""
    from iisft.machine.doctor.summary import measured

    console.out(f"measured {deep.get('date', '')}")
    console.table(measured(deep["results"]), ("CHECK", "WHERE", "RESULT"))
    console.out()


def _explain(name: str, *, as_json: bool) -> None:
    from iisft.machine.doctor.engine import rules

    by_name = {key.lower(): one for one in rules() for key in (one.id, one.name)}
    one = by_name.get(name.lower())
    if one is None:
        import difflib

        near = difflib.get_close_matches(name.lower(), by_name, n=1)
        raise UsageError(
            "no-such-rule",
            f"no rule is called {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
            fix=f"one of: {', '.join(rule.id for rule in rules())}",
        )
    about = {
        "id": one.id,
        "name": one.name,
        "explanation": one.explanation,
        "applies": one.applies,
        "basis": one.basis,
        "source": one.source,
    }
    if as_json:
        console.out_json(about)
        return
    console.out(one.id if one.id == one.name else f"{one.id} {one.name}")
    console.out()
    console.out(one.explanation)
    console.out()
    console.out(f"applies to  {one.applies}")
    console.out(f"basis       {one.basis}")
    console.out(f"source      {one.source}")
