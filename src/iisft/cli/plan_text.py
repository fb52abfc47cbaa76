"""A plan for people: one screen."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from iisft.cli.console import duration
from iisft.cli.figures import describe_spent
from iisft.estimate.memory import GIB
from iisft.runs.plan.forecast import largest_parts

if TYPE_CHECKING:
    from iisft.estimate.forecast import Forecast
    from iisft.estimate.suggestions import Suggestion
    from iisft.runs.plan.plan import Plan

_MOST_PARTS = 7  # of the peak, each on a line of its own
_VERDICT = {"yes": "fits", "tight": "tight: only without a margin", "no": "does not fit"}


def lines(plan: "Plan", contrasts: "list[Suggestion]", extra: dict[str, Any]) -> Iterator[str]:
    """What `iisft plan` prints."""
    yield from _heading(plan)
    result = plan.forecast
    if result is None:
        yield "fits: not known"
        return
    yield from _memory(plan, result)
    if contrasts:
        yield ""
        yield from _table("the same run otherwise", contrasts, names=True)
        if result.shape.way == "exact":
            yield (
                f"  this preset instead keeps the weights as stored ({result.shape.weights}) and "
                "computes each product "
                "in float32: the same bits"
            )
    if plan.suggestions:
        yield ""
        yield from _table(
            "what would make it fit, the cheapest first", plan.suggestions, names=False
        )
    elif result.fits != "yes" and not plan.accelerator.on_cpu:
        yield ""
        yield (
            "nothing that this preset allows makes it fit: a smaller model, or GPUs with more "
            "memory"
        )
    yield ""
    yield from _rows(plan)
    yield from _time(plan, result)
    for name, show in (("best", _best), ("trace", _trace), ("probe", _probe)):
        if extra.get(name):
            yield ""
            yield from show(extra[name])


def _heading(plan: "Plan") -> Iterator[str]:
    preset, on, ranks = plan.preset, plan.accelerator, plan.placement.world_size
    train = preset.train
    card = on.device.name if on.device else on.arch
    yield (
        f"{plan.document.name}: {preset.model.id}, LoRA rank {preset.lora.rank}, "
        f"{preset.precision} "
        f"arithmetic, weights {preset.weights}, {preset.attention} attention"
    )
    yield (
        f"{ranks} x {card} ({on.memory_gib:.2f} GiB: {on.source}), sharding {preset.sharding}, "
        "batch "
        f"{train.batch_size} x {train.accumulation} x {ranks} = {preset.global_batch(ranks)}, "
        f"{train.cutoff_len} tokens{_shorter(plan)}"
    )


def _shorter(plan: "Plan") -> str:
    """That memory is counted for the longest row, where that is shorter than a row may be."""
    length = plan.forecast.shape.length if plan.forecast else 0
    return f" (the longest row: {length})" if 0 < length < plan.preset.train.cutoff_len else ""


def _memory(plan: "Plan", result: "Forecast") -> Iterator[str]:
    memory = result.memory
    yield ""
    have = plan.accelerator.memory_gib
    needed = f"{memory.needed / GIB:.{1 if memory.needed >= GIB else 2}f}"
    yield f"fits: {result.fits}   {needed} GiB needed per GPU, {have:.1f} there"
    if said := _spent(plan, result):
        yield f"  {said}"
    shown = max(GIB / 200, memory.peak / 400)
    parts = [(_part(name, result), size) for name, size in memory.parts.items() if size >= shown]
    beside = [(name, size) for name, size in memory.overhead.items() if size]
    parts.sort(key=lambda part: -part[1])
    rest = parts[_MOST_PARTS - 1 :] if len(parts) > _MOST_PARTS else []
    for name, size in parts[: len(parts) - len(rest)]:
        yield f"  {size / GIB:6.2f}  {name}"
    if rest:
        each = "; ".join(f"{name} {size / GIB:.2f}" for name, size in rest)
        yield f"  {sum(size for _, size in rest) / GIB:6.2f}  {each}"
    yield f"  {memory.peak / GIB:6.2f}  peak of torch's tensors ({result.phase_text})"
    if beside:
        yield f"  {sum(size for _, size in beside) / GIB:6.2f}  beside them: " + ", ".join(
            f"{name} {size / GIB:.2f}" for name, size in beside
        )


def _spent(plan: "Plan", result: "Forecast") -> str:
    """What the step is spared."""
    shape, said = result.shape, []
    if plan.preset.train.gradient_checkpointing == "fit":
        layers = result.workload.model.layers
        said.append(f"{shape.layers_kept} of {layers} layers keep their products")
    if shape.positions is not None:
        chunk = f", {shape.chunk} positions at a time" if shape.chunk else ""
        said.append(f"logits where they are trained{chunk}")
    return "; ".join(said)


def _part(name: str, result: "Forecast") -> str:
    kept = (
        "kept for the backward pass"
        if not result.shape.checkpointing
        else "of the layer that is computed"
    )
    explained = {
        "weights": "base weights, frozen, "
        f"{result.shape.weights if result.shape.way != 'nf4' else 'nf4'}",
        "adapter": "LoRA weights",
        "optimizer": f"{result.layout.optimizer}'s state",
        "gradients": "LoRA gradients",
        "checkpoints": "checkpoints: each layer's input",
        "layer": f"activations {kept}",
        "logits": "logits, loss and their gradients",
        "casts": "weights cast for a product",
        "products": f"products kept in {result.shape.layers_kept} of "
        f"{result.workload.model.layers} layers",
        "gathered": "gathered weights",
        "ddp buckets": "DDP's buckets",
    }
    return explained.get(name, name)


def _table(title: str, found: "list[Suggestion]", *, names: bool) -> Iterator[str]:
    yield f"{title}:"
    for one in found:
        seconds = one.forecast.step_s
        pace = f"{seconds.typical:8.3g} s/step" if seconds else " " * 15
        need = one.forecast.memory.needed / GIB
        text = one.change.reason if names else f"{one.change.text}   ({one.change.reason})"
        if names and one.forecast.fits == "no":
            largest = largest_parts(one.forecast)[:2]
            text += f": {', '.join(f'{name} {size / GIB:.1f}' for name, size in largest)}"
        yield f"  {need:6.1f} GiB {pace}  {_VERDICT[one.forecast.fits]:<13}  {text}"


def _rows(plan: "Plan") -> Iterator[str]:
    """What is mixed, and of how much each dataset."""
    account = plan.account
    if len(account) == len(plan.datasets) and all(one["rows"] == one["of"] for one in account):
        return
    for one in account:
        tokens = f", about {one['tokens']:,} tokens" if one["tokens"] else ""
        yield (
            f"{one['for']}: {one['rows']:,} of {one['of']:,} rows of {one['name']} "
            f"({100 * one['share']:.2f} %){tokens}"
        )


def _time(plan: "Plan", result: "Forecast") -> Iterator[str]:
    seconds, total = result.step_s, result.total_s
    if seconds is None:
        yield "time: not known for this device; --probe measures it"
    else:
        span = f"{seconds.low:.3g} to {seconds.high:.3g}"
        yield f"time: {seconds.typical:.3g} s per step ({span}), {_rate_source(result)}"
        if result.slow_layers:
            yield (
                f"  {result.slow_layers} gated delta layers run without their kernels, which need "
                "Triton and fp16 or bf16 (about 1.7 times the step)"
            )
    if total is not None:
        end = time.time() + min(total.typical, 1e9)  # no calendar has later days
        ends = time.strftime("%Y-%m-%d %H:%M", time.localtime(end))
        epochs = plan.preset.train.epochs
        yield (
            f"  {result.steps} steps, {epochs:g} epochs: {duration(total.typical)} "
            f"({duration(total.low)} to "
            f"{duration(total.high)}), {duration(total.typical / epochs)} an epoch; started now "
            f"it ends {ends}"
        )
    elif seconds is not None:
        yield "  each row counted as cutoff_len long; hours need the staged data (--data)"
    keep = plan.preset.save.keep
    yield (
        f"disk: {result.checkpoint_gib:.2f} GiB per checkpoint, {result.disk_gib:.1f} GiB with "
        f"{keep} kept"
    )


def _rate_source(result: "Forecast") -> str:
    from iisft.estimate.timing import computed_precision

    measured = result.workload.measured
    if measured and measured.tflops:
        ratio = measured.step_ratio
        compared = f", measured / predicted {ratio:.2f}" if ratio else ""
        runs = measured.runs
        return f"measured in {runs} run{'s' if runs > 1 else ''} here{compared}"
    device = result.workload.accelerator.device
    if device is None:
        return ""
    _, known = device.rate(computed_precision(result.shape))
    return (
        f"rates measured by others on {device.name}"
        if known
        else f"estimated from {device.name}'s peak rate"
    )


def _trace(found: dict[str, Any]) -> Iterator[str]:
    if "error" in found:
        yield f"trace: {found['error']}"
        return
    yield (
        f"trace of the real step without data: {found['peak_gib']:.2f} GiB ({found['phase']}), "
        "predicted / traced "
        f"{found['predicted_over_traced']:.4f}, {found['seconds']:.0f} s"
    )


def _probe(found: dict[str, Any]) -> Iterator[str]:
    if "error" in found:
        yield f"probe: {found['error']}"
        return
    yield f"probe: {found['steps']} real steps, {found['step_s']:.3g} s per step" + "".join(
        f", {text.format(found[key])}"
        for key, text in (
            ("tokens_per_s", "{:.0f} tokens/s"),
            ("tflops", "{:.3g} TFLOP/s per GPU"),
            ("mfu", "{:.1%} of the peak"),
            ("peak_gib", "peak {:.2f} GiB"),
            ("step_predicted_over_measured", "predicted / measured {:.2f}"),
        )
        if found.get(key) is not None
    )
    if spent := describe_spent(found):
        yield f"  time went: {spent}"
    if found.get("profile"):
        yield f"  a step recorded by torch's profiler: {found['profile']}"
    if found.get("profile_error"):
        yield f"  no profile: {found['profile_error']}"


def _best(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "the same training, the fastest that fit first:"
    for one in found:
        yield (
            f"  {one['step_s']:8.3g} s/step  {one['peak_gib']:6.1f} GiB  "
            f"{one['change'] or '(as the preset says)'}"
        )
        if one.get("probe"):
            yield from (f"    {line}" for line in _probe(one["probe"]))
