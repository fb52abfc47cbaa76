"""BLEU-4 and ROUGE as LLaMA-Factory's do_predict computes them, and chrF.

Equal to llamafactory.train.sft.metric.ComputeSimilarity (0.9.5): jieba's words for ROUGE, single
characters for BLEU with smoothing method 3, each figure the mean over the rows.
"""

import contextlib
import heapq
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from iisft.errors import Finding
from iisft.evaluation import optional
from iisft.workspace import cache_folder

_WORD = re.compile(r"[\x21-\x7e\u00c0-\u024f]+|[^\s\x21-\x7e\u00c0-\u024f]")
FIGURES = ("bleu4", "rouge1", "rouge2", "rougel", "chrf")
ALL_ROWS = sys.maxsize
_PURPOSE = "a text metric"
_SECONDS = 20.0  # about what the default sample takes on a 2015 core
_FEWEST = 5
LONGEST = 1000  # words of a text that ROUGE looks at: its table grows with the product of two texts
LONGEST_ALL = 4000  # the same where a person asked for all rows: 16 seconds and a gigabyte a row
_LONGEST_TEXT = 30_000  # characters that BLEU and chrF look at
_MOST = 5000


class Scorer:
    """Scores pairs of texts. Answers repeat, so equal pairs are scored once.

    Raises:
        EnvironmentFault: a package is missing.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self._longest = longest
        self.cut = 0
        self._jieba = optional.load("jieba", _PURPOSE)
        self._jieba.setLogLevel("ERROR")
        cache = cache_folder()
        with contextlib.suppress(OSError):  # without a cache it is just slower
            cache.mkdir(parents=True, exist_ok=True)
            # jieba's default, /tmp/jieba.cache, can be written by anyone and is unmarshalled
            self._jieba.dt.tmp_dir = str(cache)
        bleu = optional.load("nltk.translate.bleu_score", _PURPOSE)
        self._bleu, self._smoothing = bleu.sentence_bleu, bleu.SmoothingFunction().method3
        self._rouge = optional.load("rouge_chinese", _PURPOSE).Rouge()
        self._chrf = optional.load("sacrebleu.metrics", _PURPOSE).CHRF()
        self._known: dict[tuple[str, str], dict[str, float]] = {}

    def score(self, reference: str, prediction: str) -> dict[str, float]:
        """The figures of one row, each from 0 to 1; chrF is sacrebleu's of the sentence (chrF2)."""
        pair = (reference[:_LONGEST_TEXT], prediction[:_LONGEST_TEXT])
        if pair not in self._known:
            self.cut += pair != (reference, prediction)
            reference, prediction = pair
            self._known[pair] = self._rouge_of(reference, prediction) | {
                "bleu4": self._bleu_of(reference, prediction),
                "chrf": self._chrf.sentence_score(prediction, [reference]).score / 100,
            }
        return self._known[pair]

    def _rouge_of(self, reference: str, prediction: str) -> dict[str, float]:
        words = [list(self._jieba.cut(text)) for text in (prediction, reference)]
        # of the pieces of a text one in two is a blank
        one, two = (sum(not word.isspace() for word in found) for found in words)
        if one * two > self._longest**2:
            self.cut += 1
            words = [_first(found, self._longest) for found in words]
        texts = [" ".join(found) for found in words]
        if not all(text.split() for text in texts):
            return {"rouge1": 0.0, "rouge2": 0.0, "rougel": 0.0}
        try:
            scores = self._rouge.get_scores(*texts)[0]
        except ValueError:  # rouge_chinese finds no sentence in it, only full stops
            return {"rouge1": 0.0, "rouge2": 0.0, "rougel": 0.0}
        # LLaMA-Factory rounds each row's figure, in percent, to 4 digits (train/sft/metric.py)
        return {name.replace("-", ""): round(scores[name]["f"] * 100, 4) / 100 for name in scores}

    def _bleu_of(self, reference: str, prediction: str) -> float:
        score = self._bleu([list(reference)], list(prediction), smoothing_function=self._smoothing)
        return round(float(score) * 100, 4) / 100

    def finding(self) -> list[Finding]:
        """What was not looked at, said."""
        if not self.cut:
            return []
        message = (
            f"{self.cut} pairs of texts are very long: ROUGE is of their first {self._longest} "
            f"words, BLEU and chrF of their first {_LONGEST_TEXT} characters"
        )
        return [Finding("text-cut", message, severity="info")]


@dataclass
class TextSample:
    """A random sample of rows for the text figures, which depends on the row numbers alone.

    Args:
        rows: how many at most; None for as many as can be scored in about 20 s.
    """

    rows: int | None
    _heap: list[tuple[int, int, str, dict[str, str]]] = field(default_factory=list)

    def add(self, row: int, reference: str, predictions: dict[str, str]) -> None:
        """Offer a row: what each system (the model, a baseline) answers to it."""
        entry = (-_priority(row), row, reference, predictions)
        if len(self._heap) < (self.rows or _MOST):
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def chosen(self, system: str) -> Iterator[tuple[int, str, str]]:
        """Row, reference and prediction of one system, as many as the time allows."""
        seconds = 0.0
        for number, (_, row, reference, predictions) in enumerate(sorted(self._heap, reverse=True)):
            if system not in predictions:
                continue
            budget = _SECONDS / len(predictions)
            if self.rows is None and seconds > budget and number >= _FEWEST:
                return
            seconds += _cost(reference, predictions[system])
            yield row, reference, predictions[system]


def measure(scorer: Scorer, sample: TextSample, system: str) -> dict[str, Any]:
    """The mean figures of one system with intervals, and `text_rows`, the number of rows."""
    from iisft.evaluation.statistics import mean_interval

    scores = [
        scorer.score(reference, prediction) for _, reference, prediction in sample.chosen(system)
    ]
    if not scores:
        return {}
    series = {name: [score[name] for score in scores] for name in FIGURES}
    found: dict[str, Any] = {name: sum(values) / len(values) for name, values in series.items()}
    intervals = {name: mean_interval(values) for name, values in series.items()}
    return found | {"text_rows": len(scores), "intervals": intervals}


def _cost(reference: str, prediction: str) -> float:
    """Seconds, roughly: ROUGE-L's table grows with the product of the lengths."""
    one, two = (min(LONGEST, _words(text)) for text in (reference, prediction))
    return 2e-4 + 1e-5 * (len(reference) + len(prediction)) + 1.6e-6 * one * two


def _words(text: str) -> int:
    """About how many: of Latin letters in runs, of everything else one each."""
    return len(_WORD.findall(text[:_LONGEST_TEXT]))


def _first(words: list[str], count: int) -> list[str]:
    return list(itertools.islice((word for word in words if not word.isspace()), count))


def _priority(row: int) -> int:
    import xxhash

    return xxhash.xxh64_intdigest(str(row).encode())
