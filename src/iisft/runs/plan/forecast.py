"""What a run will need, from what can be known before it: preset, model facts, GPUs, data, and
earlier runs here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iisft.child.constants_iisft import (
    LAYERS_KEPT_KEY,
    LOGITS_CHUNK_KEY,
    LOGITS_KEY,
    TRAINED,
)
from iisft.errors import ExitCode, Finding
from iisft.estimate import timing
from iisft.estimate.architecture import known_family, read_architecture
from iisft.estimate.forecast import Accelerator, Forecast, Workload, forecast
from iisft.estimate.memory import GIB
from iisft.estimate.step import needs_all_logits
from iisft.estimate.suggestions import Suggestion, suggest
from iisft.estimate.timing import Span
from iisft.gpu_table import Device, nearest_device
from iisft.json_values import text_of
from iisft.llamafactory.arguments import UNCOUNTED, is_packed
from iisft.machine.facts import sensors
from iisft.machine.facts.gpus import Gpu
from iisft.models.folder.known import ModelFacts, model_facts
from iisft.models.view.build import attention_keys
from iisft.models.view.support import EXACT_ARCHITECTURES
from iisft.presets.schema import Preset
from iisft.runs.plan import known_rows
from iisft.runs.plan.datasets import RunDataset
from iisft.runs.record import measurements

# of an NVIDIA card's memory what torch can have: 23.6 of 24 GB, 31.4 of 32
_USABLE = 0.98


def accelerator_for(
    preset: Preset,
    gpus: Sequence[Gpu],
    ranks: int,
    device: Device | float | None = None,
    *,
    free: bool = False,
) -> Accelerator:
    """What a preset is planned to run on: the named device, or a card like the preset's with so
    many gigabytes, else the GPUs that are here (`free`: as they are when nobody else is on them),
    else the preset's hardware.
    """
    wanted = preset.hardware
    if isinstance(device, float):
        like = nearest_device(wanted.arch, wanted.memory_gib)
        usable = device * (_USABLE if wanted.vendor == "nvidia" else 1)
        return Accelerator(
            like.arch if like else wanted.arch, usable, None, f"--device {device:g}g"
        )
    if device is not None:
        return Accelerator(device.arch, device.memory_gib, device, f"--device {device.key}")
    if wanted.vendor == "cpu":
        return Accelerator(
            "cpu", _free_ram_gib() / ranks, None, "this machine's memory", on_cpu=True
        )
    known = [gpu for gpu in gpus[:ranks] if gpu.memory_gib > 0]
    if known:
        smallest = min(known, key=lambda gpu: gpu.memory_gib)
        found = nearest_device(smallest.arch, smallest.memory_gib)
        used = 0.0 if free else _used_by_others_gib(gpus)
        source = "the GPUs of this machine" + (
            f", less {used:.1f} GiB in use" if used > 0.1 else ""
        )
        return Accelerator(smallest.arch, smallest.memory_gib - used, found, source)
    found = nearest_device(wanted.arch, wanted.memory_gib)
    usable = min(wanted.memory_gib, found.memory_gib) if found else wanted.memory_gib
    return Accelerator(
        found.arch if found else wanted.arch, usable, found, "the preset's hardware; it is not here"
    )


def forecast_run(
    preset: Preset,
    model_folder: Path,
    accelerator: Accelerator,
    ranks: int,
    datasets: Sequence[RunDataset],
    runs: Path,
    *,
    only_warn: bool = False,
) -> tuple[ModelFacts | None, Forecast | None, list[Finding]]:
    """Forecast a run, as measured in earlier ones below `runs`.

    None where config.json is missing or beyond the plan; the findings say what is not known.
    """
    facts, findings = model_facts(preset.model.id, model_folder)
    if facts is None:
        return None, None, findings
    model = read_architecture(facts.config, preset.lora.target)
    if model is None:
        text = (
            "config.json lacks a size that the plan needs, or the model has experts or layers that "
            "it can't count (Gemma 3n): memory and time are not known"
        )
        findings.append(Finding("plan-unknown-model", text, where=facts.source, severity="warn"))
        beyond = _weights_beyond(preset, facts, accelerator, ranks, only_warn=only_warn)
        return facts, None, [*findings, *beyond]
    if not any(adapted for *_, adapted in model.projections):
        text = "lora.target names no layer that the plan knows: memory and time are not known"
        findings.append(Finding("plan-no-target", text, where="lora.target", severity="warn"))
        return facts, None, findings
    workload = Workload(
        model=model,
        stored_dtype=facts.stored_dtype,
        ranks=ranks,
        accelerator=accelerator,
        rows=datasets[0].rows if datasets else None,
        row_tokens=known_rows.row_tokens(datasets[0]) if datasets else None,
        exact=text_of(facts.config, "architectures") in EXACT_ARCHITECTURES,
        data_bytes=sum(_size(dataset.file) for dataset in datasets),
    )
    if datasets:
        workload = _of_rows(workload, preset, datasets, model_folder)
    result = forecast(preset, workload)
    earlier = measurements.recall(runs, kin_of(preset, result), rows_of(preset, datasets))
    if earlier is not None:
        each = earlier.row_tokens
        tokens = Span(each, each, each) if each else workload.row_tokens
        result = forecast(preset, replace(workload, measured=earlier, row_tokens=tokens))
    return facts, result, [*findings, *_assumed(preset, facts)]


def _weights_beyond(
    preset: Preset, facts: ModelFacts, accelerator: Accelerator, ranks: int, *, only_warn: bool
) -> Iterator[Finding]:
    """Of a model that can't be counted, the least that it takes: its weights."""
    item = {"fp32": 4.0, "nf4": 0.5, "stored": 4.0 if facts.stored_dtype == "float32" else 2.0}
    shards = ranks if preset.sharding in ("fsdp", "zero3") else 1
    need = facts.parameters * item.get(preset.weights, 2.0) / shards / GIB
    if accelerator.memory_gib and need > accelerator.memory_gib and not accelerator.on_cpu:
        yield Finding(
            "does-not-fit",
            f"the weights alone are {need:.1f} GiB per GPU, there are {accelerator.memory_gib:.1f}",
            where=f"iisft plan, {accelerator.source}",
            fix="a smaller model, or GPUs with more memory",
            severity="warn" if only_warn else "error",
            exit_code=ExitCode.ENVIRONMENT,
        )


def _of_rows(
    workload: Workload, preset: Preset, datasets: Sequence[RunDataset], model_folder: Path
) -> Workload:
    share, most = known_rows.trained(datasets[0])
    lengths = [known_rows.longest(preset, dataset, model_folder) for dataset in datasets]
    return replace(
        workload,
        trained_share=share,
        most_trained=most,
        longest=max(one or 0 for one in lengths) if all(lengths) else None,
        packs=known_rows.packs(preset, datasets[0]),
    )


def step_keys(preset: Preset, result: Forecast | None) -> dict[str, Any]:
    """How the view's config says a step is spent (child/step_iisft.py)."""
    keys = attention_keys(preset.attention)
    if result is not None and result.shape.layers_kept:
        keys[LAYERS_KEPT_KEY] = result.shape.layers_kept
    if preset.train.logits == TRAINED and needs_all_logits(preset) is None:
        keys[LOGITS_KEY] = TRAINED
        if result is not None and result.shape.chunk:
            keys[LOGITS_CHUNK_KEY] = result.shape.chunk
    return keys


def step_findings(preset: Preset, result: Forecast | None) -> Iterator[Finding]:
    """What the preset asks of a step and does not get."""
    why = needs_all_logits(preset)
    if preset.train.logits == TRAINED and why:
        text = f"the logits of all positions are made: {why}"
        yield Finding("logits-all", text, "train.logits", "train.logits: all", severity="warn")
    known = result is not None and result.workload.accelerator.memory_gib > 0
    if preset.train.gradient_checkpointing == "fit" and not known:
        text = (
            "nothing is known about memory: every layer is computed twice, as with "
            "gradient_checkpointing: true"
        )
        yield Finding("fit-unknown", text, "train.gradient_checkpointing", severity="warn")


def _assumed(preset: Preset, facts: ModelFacts) -> Iterator[Finding]:
    if not known_family(facts.config):
        kind = facts.config.get("model_type")
        text = (
            f"nobody has checked the plan for model type {kind}: its layers are counted as a "
            "Llama's"
        )
        yield Finding("plan-unknown-family", text, where=facts.source, severity="warn")
    if unknown := sorted(UNCOUNTED & preset.llamafactory.keys()):
        text = f"memory and time are counted without llamafactory.{', llamafactory.'.join(unknown)}"
        yield Finding("plan-uncounted-arguments", text, where="llamafactory", severity="warn")


def kin_of(preset: Preset, result: Forecast) -> dict[str, Any]:
    """What must be the same in two runs so that the speed of one tells that of the other."""
    shape = result.shape
    return {
        "arch": result.workload.accelerator.arch,
        "precision": timing.computed_precision(shape),
        "way": shape.way,
        "attention": shape.attention,
        "checkpointing": shape.checkpointing,
        "sharding": preset.sharding,
    }


def rows_of(preset: Preset, datasets: Sequence[RunDataset]) -> str | None:
    """What must be the same for two runs' rows to have the same number of tokens."""
    return f"{preset.model.id} {datasets[0].sha256} {preset.train.cutoff_len}" if datasets else None


def record_of(
    preset: Preset, result: Forecast, datasets: Sequence[RunDataset], *, on_cpu: bool
) -> dict[str, Any]:
    """What run.json keeps of the forecast, for `status` and for the comparison at the end."""
    workload = result.workload
    # a preset for GPUs on CPU ranks: its speed tells nothing of theirs
    foreign = on_cpu and not workload.accelerator.on_cpu
    length = workload.row_tokens.typical if workload.row_tokens else result.shape.length
    length = min(length, result.shape.length)
    flops = timing.micro_batch_flops(workload.model, result.shape, length)
    kept = result.memory.overhead.get("accumulated gradients", 0)
    return {
        "fits": result.fits,
        "layers_kept": result.shape.layers_kept,
        "needed_gib": round(result.memory.needed / GIB, 3),
        "peak_gib": round((result.memory.peak + kept) / GIB, 3),
        "step_s": round(result.step_s.typical, 6) if result.step_s and not foreign else None,
        "total_h": round(result.total_s.typical / 3600, 6)
        if result.total_s and not foreign
        else None,
        "kin": kin_of(preset, result) | ({"arch": "cpu"} if foreign else {}),
        "flops_per_token": flops / (result.shape.batch * length),
        "ranks": workload.ranks,
        "rows": rows_of(preset, datasets),
        "global_batch": preset.global_batch(workload.ranks),
        "tokens_per_step": _tokens_per_step(preset, workload, length),
    }


def _tokens_per_step(preset: Preset, workload: Workload, length: float) -> int | None:
    """Of a typical step; None where nothing is known of the rows."""
    if workload.row_tokens is None:
        return None
    if is_packed(preset):
        if not workload.packs or not workload.rows:
            return None
        length = workload.row_tokens.typical * workload.rows / workload.packs
    return round(length * preset.global_batch(workload.ranks))


def suggestions(preset: Preset, result: Forecast) -> list[Suggestion]:
    """Changes after which a run that does not fit would."""
    return [] if result.fits == "yes" else suggest(preset, result.workload)


def fit_findings(preset: Preset, result: Forecast, *, only_warn: bool) -> Iterator[Finding]:
    """A run that does not fit, with the cheapest change that fixes it."""
    accelerator = result.workload.accelerator
    if result.fits == "yes" or accelerator.on_cpu:
        return
    found = suggestions(preset, result)
    need, have = result.memory.needed / GIB, accelerator.memory_gib
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest_parts(result))
    tight = result.fits == "tight"
    yield Finding(
        "does-not-fit",
        f"the plan needs {need:.1f} GiB per GPU ({result.phase_text}: {parts}), there are "
        f"{have:.1f}" + ("; it fits only without a margin" if tight else ""),
        where=f"iisft plan, {accelerator.source}",
        fix=found[0].change.text if found else "a smaller model, or GPUs with more memory",
        severity="warn" if tight or only_warn else "error",
        exit_code=ExitCode.ENVIRONMENT,
    )


def largest_parts(result: Forecast) -> list[tuple[str, int]]:
    """The three biggest parts of the peak."""
    return sorted(result.memory.parts.items(), key=lambda part: -part[1])[:3]


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _used_by_others_gib(gpus: Sequence[Gpu]) -> float:
    """What other programs hold on the fullest GPU.

    0 where the driver does not tell, or tells of other GPUs.
    """
    samples = sensors.samples_of([gpu.memory_gib for gpu in gpus])
    return max((one.memory_used_gib or 0.0 for one in samples), default=0.0)


def _free_ram_gib() -> float:
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 0.0
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) / 2**20 if match else 0.0
