"""iisft export: a run's adapter merged into its base model."""

from pathlib import Path
from typing import Annotated

import typer

from iisft.cli import console
from iisft.cli.options import BaseModelOption, CheckpointOption, CpuOption, JsonOption, RunArgument
from iisft.errors import UsageError


def export(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")
    ],
    run: RunArgument = None,
    checkpoint: CheckpointOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|fp16|bf16", help="The weights' dtype; default: the base model's."
        ),
    ] = None,
    model: BaseModelOption = None,
    cpu: CpuOption = False,
    as_json: JsonOption = False,
) -> None:
    """Merge the adapter into its base model and check the result.

    The merged model must give the adapter's answers before the folder gets its name.

    \b
    Examples:
      iisft export RUN -o merged --dtype bf16
    """
    from iisft.cli.loading import prepare
    from iisft.inference import export as exporting
    from iisft.models.view.support import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise UsageError("dtype", f"--dtype is {', '.join(DTYPES)}, not {dtype!r}")
    ready = prepare(run, checkpoint, model, cpu=cpu)
    plan = exporting.plan(ready.source, ready.chosen, output, dtype)
    console.say(f"merging {plan.need.sentence}, and {plan.disk_bytes / 2**30:.1f} GiB of disk")
    plan.need.require()
    check = exporting.run(plan)
    if as_json:
        facts = {
            name: getattr(check, name) for name in ("tokens", "agreement", "divergence", "effect")
        }
        console.out_json({"dir": str(plan.target), "dtype": plan.dtype, "check": facts})
    else:
        console.out(str(plan.target))
    console.say(check.sentence)
