"""iisft env-check: the doctor."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import JsonOption, complete_presets
from iisft.errors import ExitCode, Finding, InputError, UsageError
from iisft.workspace import Workspace

if TYPE_CHECKING:
    from iisft.machine.doctor.engine import Case
    from iisft.machine.facts.machine import Machine
    from iisft.machine.facts.reader import Reader


_Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        help="Also check what this preset needs.",
        autocompletion=complete_presets,
    ),
]
_Deep = Annotated[
    bool, typer.Option("--deep", help="Compute on every GPU and exchange data between them.")
]
_Collect = Annotated[
    Path | None,
    typer.Option(metavar="FILE.tar.gz", help="Pack what was read, to be diagnosed elsewhere."),
]
_MachineFrom = Annotated[
    Path | None,
    typer.Option("--from", metavar="FILE_OR_DIR", help="Diagnose a packed machine instead."),
]
_FixPlan = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the fixes as a shell script.")
]
_Explain = Annotated[
    str | None, typer.Option(metavar="ID", help="Explain a rule and name its source.")
]


def env_check(
    preset: _Preset = None,
    deep: _Deep = False,
    collect: _Collect = None,
    machine_from: _MachineFrom = None,
    fix_plan: _FixPlan = None,
    explain: _Explain = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: GPUs, driver, links, packages.

    Every finding comes with its fix. Exit 4 when something would fail.

    \b
    Examples:
      iisft env-check --preset mi50
      iisft env-check --deep
      iisft env-check --explain R08
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
    case = _case(machine, preset, workspace)
    if deep:
        case = _deep(case)
        machine = case.machine
    found = [*engine.diagnose(case), *notes]
    if collect is not None:
        _pack(collect, machine, reader)
    if fix_plan is not None:
        _write_fix_plan(fix_plan, found, machine)
    ok = all(one.severity != "error" for one in found)
    console.out_json(_document(case, found, ok=ok)) if as_json else _print(case, found)
    if not ok:
        raise typer.Exit(ExitCode.ENVIRONMENT)


def _pack(file: Path, machine: "Machine", reader: "Reader") -> None:
    from iisft.machine.doctor import bundle

    console.write(file, bundle.packed(machine, reader), InputError, "file-write")
    console.say(
        f"{file}: {len(reader.files)} files and the interpreter's report; it holds no secret"
    )


def _case(machine: "Machine", preset: str | None, workspace: Workspace) -> "Case":
    """What would run: the preset, its model's configuration where that is known, and whether the
    plan says it fits.
    """
    from iisft.machine.doctor.engine import Case

    if preset is None:
        return Case(machine=machine)
    from iisft.runs.plan.make import make_plan
    from iisft.runs.plan.request import Request

    plan = make_plan(Request(preset), workspace, gpus=machine.visible)
    return Case(
        plan.preset,
        plan.placement.ranks,
        model=plan.facts.config if plan.facts else {},
        document=plan.document,
        machine=machine,
        fits=plan.fits,
        need_gib=plan.forecast.peak_gib if plan.forecast else None,
    )


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


def _write_fix_plan(file: Path, found: list[Finding], machine: "Machine") -> None:
    from iisft.machine.doctor import fixes

    text = fixes.render(found, machine)
    console.write(file, text, InputError, "file-write")
    console.say(f"{file}: read it, then bash {file}")


def _document(case: "Case", found: list[Finding], *, ok: bool) -> dict[str, Any]:
    from iisft.machine.doctor.engine import find_rule
    from iisft.machine.doctor.summary import facts

    findings = []
    for one in found:
        rule = find_rule(one.id)
        named = rule is not None and rule.id == one.id
        findings.append(
            {
                "id": one.id,
                "name": rule.name if rule and named else one.id,
                "severity": one.severity,
                "message": one.message,
                "fix": one.fix,
                "evidence": one.where,
                "basis": rule.basis if rule and named else "observed",
            }
        )
    return {
        "ok": ok,
        "findings": findings,
        "machine": facts(case.machine),
        "deep": list((case.machine.deep or {}).get("results", [])),
    }


def _print(case: "Case", found: list[Finding]) -> None:
    from iisft.machine.doctor.engine import find_rule
    from iisft.machine.doctor.summary import lines

    for name, text in lines(case.machine):
        console.out(f"{name:<8} {text}")
    console.out()
    counts = dict.fromkeys(("error", "warn", "info"), 0)
    for severity in counts:
        for one in (one for one in found if one.severity == severity):
            counts[severity] += 1
            rule = find_rule(one.id)
            title = f"{one.id} {rule.name}" if rule and one.id == rule.id != rule.name else one.id
            inferred = " (inferred, not documented)" if rule and rule.basis == "inferred" else ""
            console.finding(one, f"{title}: {one.message}{inferred}")
    if case.machine.deep and case.machine.deep.get("results"):
        _print_deep(case.machine.deep)
    console.out(
        ", ".join(
            f"{count} {word}{'' if count == 1 else 's'}"
            for word, count in zip(("error", "warning", "note"), counts.values(), strict=True)
        )
        + ("; iisft env-check --explain ID says more about one" if found else "")
    )


def _print_deep(deep: Any) -> None:
    """A table of what was measured."""
    from iisft.machine.doctor.summary import measured

    console.out(f"measured {deep.get('date', '')}")
    console.table(measured(deep["results"]), ("CHECK", "WHERE", "RESULT"))
    console.out()


def _explain(name: str, *, as_json: bool) -> None:
    from iisft.machine.doctor.engine import all_rules, find_rule

    one = find_rule(name)
    if one is None:
        import difflib

        known = [key.lower() for rule in all_rules() for key in (rule.id, rule.name)]
        near = difflib.get_close_matches(name.lower(), known, n=1)
        raise UsageError(
            "no-such-rule",
            f"no rule is called {name!r}" + (f"; did you mean {near[0]}?" if near else ""),
            fix=f"one of: {', '.join(rule.id for rule in all_rules())}",
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
