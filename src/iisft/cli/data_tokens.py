"""What `data check` and `data stage` say about tokens: their options, and the account
for people.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from iisft.cli import console
from iisft.cli.options import complete_presets

if TYPE_CHECKING:
    from iisft.data.stage.staged import StagedDataset
    from iisft.data.tokens.account import Account
    from iisft.data.tokens.target import Target
    from iisft.presets.sections import Overlong

_BAR = 40
_POLICIES = ("fail", "fit", "drop", "allow")

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", help="Count tokens for this preset.", autocompletion=complete_presets
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Model folder or hub id whose tokenizer counts.")
]
OverlongOption = Annotated[
    str | None,
    typer.Option(
        "--overlong",
        metavar="POLICY",
        help="Rows over cutoff_len: fail, fit, drop or allow; default: the preset's.",
        autocompletion=lambda: list(_POLICIES),
    ),
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="Count every row of a file above 20,000 rows.")
]


def target(
    preset: str | None, model: str | None, overrides: list[str] | None, overlong: str | None
) -> "Target":
    """What tokens are counted for; what was assumed about it is said."""
    from iisft.data.tokens.target import resolve
    from iisft.errors import UsageError
    from iisft.workspace import Workspace

    if overlong not in (None, *_POLICIES):
        raise UsageError("overlong", f"--overlong is fail, fit, drop or allow, not {overlong!r}")
    found = resolve(
        Workspace.current(), preset, model, overrides or (), cast("Overlong | None", overlong)
    )
    if found.note:
        console.say(found.note)
    return found


def account_json(account: "Account", target: "Target") -> dict[str, Any]:
    """The account for --json."""
    assert target.limit is not None
    return {
        "template": target.limit.tokens.identity["template"],
        "policy": target.policy,
        **account.as_json(),
    }


def print_account(account: "Account", target: "Target", file: Path) -> None:
    """The account as a person reads it."""
    from iisft.data.tokens.counting import unrenderable_finding

    assert target.limit is not None
    about = account.as_json()
    template = target.limit.tokens.identity["template"]
    console.out(f"tokens, template {template}, cutoff_len {account.cutoff_len}")
    if account.rows:
        _print_numbers(account, about)
    if account.refused:
        finding = unrenderable_finding(account.uncounted, *account.refused)
        console.out(f"{finding.message}; such rows are not in this account")
    if account.rows:
        console.out()
        for line in verdict_lines(account, target, file):
            console.out(line)


def _print_numbers(account: "Account", about: dict[str, Any]) -> None:
    kinds = about["percentiles"]
    names = list(kinds["total"])
    console.out(" " * 8 + "".join(f"{name:>9}" for name in names))
    for kind, values in kinds.items():
        console.out(f"  {kind:<6}" + "".join(f"{values[name]:>9,}" for name in names))
    console.out()
    for line in histogram_lines(account):
        console.out(line)
    console.out()
    epoch, padding = about["epoch"], about["padding"]
    console.out(
        f"an epoch has {epoch['tokens']:,} tokens, {epoch['trained']:,} of them trained on; "
        "padding is "
        f"{padding['share']:.1%} of what is computed, with packing {padding['share_packed']:.1%}"
    )
    if account.sampled:
        sample = about["sample"]
        console.out(
            f"counted in a sample of {sample['rows']:,} of {sample['of']:,} rows: shares are "
            "exact to "
            f"{100 * sample['error_bound']:.1f} points (95 %), the longest row may be longer; "
            "--exact counts all"
        )


def histogram_lines(account: "Account") -> Iterator[str]:
    """Rows by length, the bins over cutoff_len marked."""
    bins = account.histogram()
    most = max((one["rows"] for one in bins), default=0)
    width = len(f"{bins[-1]['to'] - 1:,}") if bins else 0
    for one in bins:
        bar = "█" * round(_BAR * one["rows"] / most) or ("▏" if one["rows"] else "")
        over = "  over cutoff_len" if one["from"] > account.cutoff_len and one["rows"] else ""
        yield (
            f"  {one['from']:>{width},} .. {one['to'] - 1:>{width},}  {one['rows']:>7,}  "
            f"{bar}{over}"
        )


def verdict_lines(account: "Account", target: "Target", file: Path) -> Iterator[str]:
    """Whether LLaMA-Factory would cut rows, what of them, and what to do."""
    import shlex

    about = account.as_json()
    of = about["sample"]["of"]
    if not account.damaged:
        yield f"no row is longer than cutoff_len {account.cutoff_len}: LLaMA-Factory cuts nothing"
        return
    roughly = "about " if account.sampled else ""
    yield (
        f"at cutoff_len {account.cutoff_len} LLaMA-Factory would damage "
        f"{roughly}{about['damaged']:,} of {of:,} rows "
        f"({about['damaged'] / of:.1%}) without a word:"
    )
    yield (
        f"  {about['header_lost']:,} lose the end of their prompt and with it the assistant header"
    )
    if about["answer_cut"]:
        lost = about["answer_lost_share"]
        yield (
            f"  {about['answer_cut']:,} lose a part of their answer (median {lost['median']:.0%} "
            "of it, "
            f"at most {lost['max']:.0%}), {about['eos_lost']:,} their end of turn"
        )
    worst = (f"row {one.row} ({one.row_tokens.total:,} tokens)" for one in account.worst[:5])
    yield f"  worst: {', '.join(worst)}"
    stage = f"iisft data stage {shlex.quote(str(file))} --name NAME {target.options}".rstrip()
    says = {
        "fail": "the policy is fail: neither staging nor training takes such rows",
        "fit": "the policy is fit: staging shortens the text of these rows so that all else stays "
        "whole",
        "drop": "the policy is drop: staging leaves these rows out",
        "allow": "the policy is allow: they are trained on as LLaMA-Factory cuts them",
    }
    yield says[target.policy]
    yield f"  fit:   {stage} --overlong fit"
    yield (
        f"  raise: --set train.cutoff_len={account.longest} cuts nothing, and costs memory and time"
    )


def print_staged(dataset: "StagedDataset") -> None:
    """What the policy did to a staged dataset, from its record."""
    tokens, overlong = dataset.record.get("tokens"), dataset.record.get("overlong")
    if tokens is None:
        console.say(
            "tokens were not counted; --preset NAME counts them, and train does before it starts"
        )
        return
    if overlong is None:
        longest = tokens["lossless_cutoff_len"]
        console.out(
            f"  {tokens['damaged']:,} rows over cutoff_len {tokens['cutoff_len']}, the longest "
            f"has {longest:,}"
        )
        return
    parts = [
        f"{overlong['shortened']:,} shortened (median {overlong['tokens_taken_median']:,} tokens "
        "taken out)"
    ]
    parts = parts if overlong["shortened"] else []
    parts += [f"{overlong['left_out']:,} left out"] if overlong["left_out"] else []
    verdict = f": {', '.join(parts)}" if parts else ""
    console.out(
        f"  {tokens['damaged']:,} rows were over cutoff_len {tokens['cutoff_len']}{verdict}"
    )
    console.out(f"  what was cut: {dataset.folder / overlong['report']}")


def tokenize(target: "Target", name: str) -> Path:
    """Let LLaMA-Factory tokenise a staged dataset for the target's preset.

    The folder with the tokens.
    """
    from iisft.errors import CheckFailed
    from iisft.llamafactory import interpreter as training
    from iisft.machine.doctor.inspect import interpreter_errors
    from iisft.runs.plan import preflight, token_cache
    from iisft.workspace import Workspace

    assert target.preset is not None and target.limit is not None
    preset = target.preset.model_copy(
        update={"data": target.preset.data.model_copy(update={"name": name})}
    )
    workspace, model = Workspace.current(), target.limit.tokens.model
    interpreter = training.inspect(training.training_interpreter())
    findings = interpreter_errors(interpreter)
    datasets, of_data = preflight.datasets_for(preset, workspace, model)
    findings += of_data
    if any(finding.severity == "error" for finding in findings):
        raise CheckFailed(findings)
    console.say("LLaMA-Factory tokenises the rows (it takes half a minute to start)")
    return token_cache.build(preset, datasets, model, interpreter, workspace)
