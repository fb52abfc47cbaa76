"""What an evaluation or a comparison means, in plain sentences in two languages.

The figures' modules know nothing of prose: commands and the report ask here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from iisft.evaluation import texts as wording
from iisft.evaluation.classes import NO_LABEL, shown
from iisft.evaluation.compare import Comparison, Pair
from iisft.evaluation.evaluate import MAJORITY, Evaluation

_Fact = tuple[str, dict[str, Any]]
_WEAK_RECALL = 0.5
_OF_CLASSES = ("accuracy", "balanced_accuracy")
_LOPSIDED = 0.2


def sentences(found: Evaluation, language: str = wording.ENGLISH) -> list[str]:
    """What an evaluation means, beginning with what must not be overlooked."""
    return [text for _, text in sentences_with_tone(found, language)]


def sentences_with_tone(found: Evaluation, language: str) -> list[tuple[str, str]]:
    """Each sentence after its tone: bad, warn, good, or "" for a plain fact."""
    facts = [
        *_failures(found),
        *_classes(found),
        *_against_baselines(found, language),
        *_json(found),
        *_text(found),
    ]
    return [
        (
            wording.TONES.get(key, ""),
            wording.pick(wording.SENTENCES[key], language).format(**values),
        )
        for key, values in facts
    ]


def verdict(found: Comparison, language: str = wording.ENGLISH) -> list[str]:
    """Which one is best and why, how sure that is, and whether it beats trivial answers."""
    return [text for _, text in verdict_with_tone(found, language)]


def verdict_with_tone(found: Comparison, language: str) -> list[tuple[str, str]]:
    """Each sentence of the verdict after its tone: bad, warn, good, or "" for a plain fact."""

    def say(key: str, **values: object) -> tuple[str, str]:
        return wording.TONES.get(key, ""), wording.pick(wording.VERDICTS[key], language).format(
            **values
        )

    figure = wording.pick(wording.FIGURES[found.figure], language)
    score = percent(found.scores[found.best])
    said = [say("best", name=found.best, figure=figure, score=score, rows=found.rows)]
    if len(found.tied) > 1:
        others = ", ".join(name for name in found.tied if name != found.best)
        steps = [found.losses[name]["step"] for name in found.tied]
        said.append(
            say("tied-earlier" if all(steps) and len(set(steps)) > 1 else "tied", others=others)
        )
    for pair in found.pairs:
        key = "chance" if pair.chance else "sure"
        facts = {
            "other": pair.other,
            "score": percent(found.scores[pair.other]),
            "difference": _points(pair, language),
        }
        flips = {"won": len(pair.won), "lost": len(pair.lost), "p": _p(pair.p_value)}
        said.append(say(key, **facts, **flips))
    rival = max(
        (
            (metrics[found.figure], name)
            for name, metrics in found.evaluations[found.best].baselines.items()
            if found.figure in metrics
        ),
        default=None,
    )
    if rival is not None and rival[0] >= found.scores[found.best]:
        said.append(say("none-good", rival=rival[1], score=percent(rival[0])))
    known = {
        name: loss
        for name, losses in found.losses.items()
        if (loss := losses["eval_loss"]) is not None
    }
    if (
        len(set(known.values())) > 1
        and (lowest := min(known, key=lambda name: known[name])) != found.best
    ):
        said.append(say("eval-loss", name=lowest, loss=f"{known[lowest]:.4f}"))
    return said


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def span(interval: Any) -> str:
    """An interval of a rate after its figure."""
    return f" ({100 * interval[0]:.1f} - {100 * interval[1]:.1f})" if interval else ""


def _failures(found: Evaluation) -> Iterator[_Fact]:
    counts = found.counts
    generated = counts["generated"]
    if errors := counts["generation_errors"]:
        rate = percent(errors / counts["rows"])
        yield (
            "generation-errors",
            {"count": errors, "rows": counts["rows"], "rate": rate, "generated": generated},
        )
    if not generated:
        yield "nothing-generated", {}
        return
    for name in ("empty", "cut_off", "repeated", "fenced_json"):
        if count := counts[name]:
            rate = percent(count / generated)
            yield name.replace("_", "-"), {"count": count, "generated": generated, "rate": rate}
    if thoughts := counts.get("thoughts"):
        facts = {"count": thoughts, "generated": generated, "rate": percent(thoughts / generated)}
        yield "thoughts", facts | {"characters": f"{counts['thought_characters']:,}"}
        if empty := counts["empty_thoughts"]:
            yield "empty-thoughts", {"count": empty, "thoughts": thoughts}


def _classes(found: Evaluation) -> Iterator[_Fact]:
    metrics = found.metrics
    if "per_class" not in metrics:
        return
    for name, figures in metrics["per_class"].items():
        rates = {key: percent(figures[key]) for key in ("recall", "precision")}
        right = metrics["confusion"][name].get(name, 0)
        interval = span(metrics["intervals"].get(f"recall {name}"))
        yield "class", figures | rates | {"name": shown(name), "right": right, "span": interval}
    total = sum(figures["support"] for figures in metrics["per_class"].values())
    often, figures = max(metrics["per_class"].items(), key=lambda item: item[1]["predicted"])
    share, asked = figures["predicted"] / total, figures["support"] / total
    weak = any(each["recall"] < _WEAK_RECALL for each in metrics["per_class"].values())
    if weak and share - asked > _LOPSIDED:
        yield "lopsided", {"name": shown(often), "share": percent(share), "asked": percent(asked)}
    if none := sum(row.get(NO_LABEL, 0) for row in metrics["confusion"].values()):
        yield "no-class", {"count": none}


def _against_baselines(found: Evaluation, language: str) -> Iterator[_Fact]:
    metrics = found.metrics
    for name, words in wording.FIGURES.items():
        if name not in metrics:
            continue
        own, interval = metrics[name], metrics["intervals"].get(name)
        rivals = {
            label: values[name] for label, values in found.baselines.items() if name in values
        }
        better = {label: value for label, value in rivals.items() if value >= own}
        near = {
            label: value
            for label, value in rivals.items()
            if interval and interval[0] <= value < own
        }
        if name in _OF_CLASSES:  # it is one of the constant classes, listed anyway
            better.pop(MAJORITY, None)
            near.pop(MAJORITY, None)
        if name == "balanced_accuracy":  # it is the same for every constant answer
            better, near = (_without_twins(values) for values in (better, near))
        facts = {
            "figure": wording.pick(words, language),
            "own": percent(own),
            "span": span(interval),
        }
        if better:
            yield "not-better", facts | {"rivals": _listed(better, language)}
        elif near:
            yield "not-told-apart", facts | {"rivals": _listed(near, language)}
        elif rivals:
            best = max(rivals.items(), key=lambda item: item[1])
            yield "better", facts | {"rivals": _listed(dict([best]), language)}


def _json(found: Evaluation) -> Iterator[_Fact]:
    metrics, generated = found.metrics, found.counts["generated"]
    for key, name in (("valid-json", "valid_json"), ("schema", "schema_valid")):
        if name in metrics:
            count, interval = round(metrics[name] * generated), span(metrics["intervals"][name])
            facts = {"count": count, "generated": generated, "rate": percent(metrics[name])}
            yield key, facts | {"span": interval}
    for pointer, rate in metrics.get("ids_echoed", {}).items():
        present = metrics["fields"][pointer]["rows"] - metrics["fields"][pointer]["missing"]
        yield (
            "echoed",
            {"name": pointer.lstrip("/"), "right": round(rate * present), "present": present},
        )
    if count := metrics.get("rows_with_missing_keys"):
        yield "missing-keys", {"count": count}
    if count := metrics.get("rows_with_extra_keys"):
        keys = [key.lstrip("/") for key in list(metrics["extra_keys"])]
        yield (
            "extra-keys",
            {"count": count, "keys": ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")},
        )


def _text(found: Evaluation) -> Iterator[_Fact]:
    rows = found.metrics.get("text_rows")
    if rows is not None and rows < found.counts["generated"] - found.counts["without_reference"]:
        yield "text-sample", {"count": rows}


def _without_twins(rivals: Mapping[str, float]) -> dict[str, float]:
    always = [name for name in rivals if name.startswith("always ")]
    return {name: value for name, value in rivals.items() if name not in always[1:]}


def _listed(rivals: Mapping[str, float], language: str) -> str:
    texts = [f"{_readable(name, language)} ({percent(value)})" for name, value in rivals.items()]
    return wording.pick(wording.OR, language).join(texts)


def _readable(name: str, language: str) -> str:
    constant = name.removeprefix("always ")
    if constant != name:
        return wording.pick(wording.ALWAYS, language).format(name=shown(constant))
    return wording.pick(wording.RIVALS[name], language) if name in wording.RIVALS else name


def _points(pair: Pair, language: str) -> str:
    low, high = pair.interval
    unit = wording.pick(wording.POINTS, language)
    return f"{100 * pair.difference:.1f} {unit} ({100 * low:.1f} to {100 * high:.1f})"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
