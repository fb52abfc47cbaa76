"""iisft export: a run's adapter for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iisft.cli import console
from iisft.cli.options import BaseModelOption, CheckpointOption, CpuOption, JsonOption, RunArgument
from iisft.errors import UsageError

if TYPE_CHECKING:
    from iisft.inference.export_plan import Check, Export


_Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")
]
_Dtype = Annotated[
    str | None,
    typer.Option(metavar="fp32|fp16|bf16", help="The weights' dtype; default: the base model's."),
]
_Format = Annotated[
    str,
    typer.Option(
        metavar="merged|gguf|adapter",
        help="Merged weights, one GGUF file, or the adapter alone.",
    ),
]
_Quant = Annotated[
    str | None,
    typer.Option(metavar="q8_0|f16|bf16", help="How GGUF holds the weights; default: q8_0."),
]
_Converter = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="llama.cpp's convert_hf_to_gguf.py, if it is not in the training interpreter.",
    ),
]


def export(
    output: _Output,
    run: RunArgument = None,
    checkpoint: CheckpointOption = None,
    dtype: _Dtype = None,
    format: _Format = "merged",
    quant: _Quant = None,
    converter: _Converter = None,
    model: BaseModelOption = None,
    cpu: CpuOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the adapter for other tools, merged or alone, checked.

    The exported model must give the adapter's answers, to the prompts of the training, before the
    folder gets its name.

    \b
    Examples:
      iisft export RUN -o merged --dtype bf16
      iisft export RUN -o gguf --format gguf --quant q8_0
      iisft export RUN -o adapter --format adapter
    """
    from iisft.cli.progress import prepare
    from iisft.inference import export as exporting
    from iisft.inference import export_plan

    _require_choices(dtype, format, quant, converter)
    ready = prepare(run, checkpoint, model, cpu=cpu)
    plan = export_plan.plan(
        ready.source, ready.chosen, output, dtype, format, quant or "q8_0", converter
    )
    disk = f"{plan.disk_bytes / 2**30:.1f} GiB of disk"
    if format == export_plan.ADAPTER_ONLY:
        console.say(f"the adapter needs {disk}")
    else:
        console.say(f"merging {plan.need.sentence}, and {disk}")
        plan.need.require()
    check = exporting.run(plan)
    if as_json:
        console.out_json(_document(plan, check))
    else:
        console.out(str(plan.target))
    console.say(f"chat template: {plan.chat.how}")
    if check is not None:
        console.say(f"{check.sentence}; {check.of_prompts}")


def _require_choices(
    dtype: str | None, format: str, quant: str | None, converter: Path | None
) -> None:
    from iisft.inference import export_plan, gguf
    from iisft.models.view.support import DTYPES

    if dtype is not None and dtype not in DTYPES:
        raise UsageError("dtype", f"--dtype is {', '.join(DTYPES)}, not {dtype!r}")
    if format not in export_plan.FORMATS:
        words = ", ".join(export_plan.FORMATS)
        raise UsageError("export-format", f"--format is {words}, not {format!r}")
    if quant is not None and quant not in gguf.BYTES:
        raise UsageError("export-quant", f"--quant is {', '.join(gguf.BYTES)}, not {quant!r}")
    if format != export_plan.GGUF and (quant or converter):
        raise UsageError("export-quant", "--quant and --converter are for --format gguf")
    if format == export_plan.ADAPTER_ONLY and dtype:
        raise UsageError("dtype", "--dtype is for merged weights; an adapter stays as it is")


def _document(plan: "Export", check: "Check | None") -> dict[str, Any]:
    names = ("tokens", "agreement", "divergence", "effect", "prompts", "equal")
    return {
        "dir": str(plan.target),
        "format": plan.format,
        "dtype": None if plan.format == "adapter" else plan.dtype,
        "quant": plan.quant if plan.format == "gguf" else None,
        "chat_template": {"from": plan.chat.how, "tools": plan.chat.tools},
        "check": {name: getattr(check, name) for name in names} if check else None,
    }
