"""What a comparison means, in plain sentences."""

from typing import TYPE_CHECKING

from iisft.evaluation import texts
from iisft.evaluation.sentences import percent

if TYPE_CHECKING:
    from iisft.evaluation.compare import Comparison, Pair


def verdict(found: "Comparison", language: str = texts.ENGLISH) -> list[str]:
    """Which one is best and why, how sure that is, and whether it beats trivial answers."""
    return [text for _, text in with_tone(found, language)]


def with_tone(found: "Comparison", language: str) -> list[tuple[str, str]]:
    """Each sentence of the verdict after its tone: bad, warn, good, or "" for a plain fact."""

    def say(key: str, **values: object) -> tuple[str, str]:
        return texts.TONES.get(key, ""), texts.pick(texts.VERDICTS[key], language).format(**values)

    figure = texts.pick(texts.FIGURES[found.figure], language)
    score = percent(found.scores[found.best])
    said = [say("best", name=found.best, figure=figure, score=score, rows=found.rows)]
    if len(found.tied) > 1:
        others = ", ".join(name for name in found.tied if name != found.best)
        steps = [found.losses[name]["step"] for name in found.tied]
        said.append(say("tied-earlier" if all(steps) else "tied", others=others))
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


def _points(pair: "Pair", language: str) -> str:
    low, high = pair.interval
    unit = texts.pick(texts.POINTS, language)
    return f"{100 * pair.difference:.1f} {unit} ({100 * low:.1f} to {100 * high:.1f})"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
