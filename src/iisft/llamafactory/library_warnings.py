"""Warnings of the libraries that say nothing against a run, each with its reason.

Every other one is told to whoever starts the run. Checked with LLaMA-Factory 0.9.5, transformers
5.5, peft 0.18.
"""

import re
from collections.abc import Iterable, Iterator

LIBRARY_WARNING = "library-warning"  # the findings' id

HARMLESS: tuple[tuple[str, str], ...] = (
    (r"Version checking has been disabled", "iisft compares the versions itself"),
    (r"We recommend enable mixed precision training", "the preset says the precision"),
    (r"We recommend enable `upcast_layernorm`", "advice; nothing is computed otherwise"),
    (r"`torch_dtype` is deprecated", "LLaMA-Factory's own spelling"),
    (
        r"Unrecognized keys in `rope_parameters`.*(full|sliding)_attention",
        "Gemma 3 has one set for each kind of layer",
    ),
    (r"The fast path is not available because one of", "told as a finding of its own"),
    (r"New tokens have been added, make sure", "told with the tokens' names"),
    (r"warmup_ratio is deprecated", "LLaMA-Factory 0.9.5 knows no other"),
    (r"please add `_nothink` suffix", "the template is compared with the model's own"),
    (r"LOAD REPORT", "told with the tensors' names"),
    (r"tie_word_embeddings=True` and a tied layer", "told as a finding of its own"),
    (r"Gemma-2 should use soft-capping attention", "told as a finding of its own"),
    (r"New (special )?tokens have been added, changed `resize_vocab`", "the preset adds them"),
    (r"Vocab has been resized, add", "the preset adds the tokens"),
    (
        r"new PAD/BOS/EOS tokens(?!.*'eos_token_id')",
        "padding is masked, and a row begins as the template says",
    ),
    (r"^(Future|Deprecation|PendingDeprecation)Warning: ", "of later versions than those that run"),
    (r"pkg_resources is deprecated as an API", "of a package's import, which goes well"),
    (r"Remember to add embedding layers to `additional_target`", "LLaMA-Factory adds them itself"),
)


# As transformers and LLaMA-Factory log, and as Python's warnings module prints; the line may begin
# with a progress bar, which ends in no line end of its own.
_LINES = (
    re.compile(
        r"(?:^|[\r\]])\[(?:WARNING|ERROR|CRITICAL)\|[^\]]{1,200}\] (?:\S+ \S+ |\S+:\d+ )>> (.+)$"
    ),
    re.compile(r"(?:^|[\r\]])/[^:]{1,1000}\.py:\d+: (\w*Warning: .+)$"),
)


def said_in(line: str) -> str | None:
    """The warning in a line of a trainer's log."""
    for pattern in _LINES:
        if match := pattern.search(line):
            return match[1]
    return None


def telling(said: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The warnings that are not harmless, each once, on one line.

    Args:
        said: logger and text of each.
    """
    told = set()
    for _, text in said:
        line = " ".join(text.split())
        if line not in told and not any(re.search(pattern, line) for pattern, _ in HARMLESS):
            told.add(line)
            yield line
