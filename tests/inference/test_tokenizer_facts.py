"""What an export is told of its tokenizer: child/tokenizer_facts.py."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

sys.path.append(str(Path(__file__).parents[2] / "src" / "iisft" / "child"))
from tokenizer_facts import tokenizer_facts

ROWS = 5
WORDS = {"<unk>": 0, "<|end|>": 1, "问": 2, "x": 3, "答": 4}


class Trained:
    """As much of a tokenizer of transformers as is asked, with tokens that a template added."""

    bos_token_id = None
    eos_token, eos_token_id, pad_token, pad_token_id = "<|end|>", 1, "<|end|>", 1

    def __init__(self, file: Path, more: list[str]) -> None:
        self._own = Tokenizer.from_file(str(file))
        self._own.add_special_tokens([AddedToken(word, special=True) for word in more])

    def __len__(self) -> int:
        return self._own.get_vocab_size()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        return self._own.get_added_tokens_decoder()

    def encode(self, text: str, **_: Any) -> list[int]:
        return self._own.encode(text, add_special_tokens=False).ids

    def save_pretrained(self, target: Path) -> None:
        self._own.save(str(target / "tokenizer.json"))


@pytest.mark.parametrize(
    ("more", "rows", "published", "stops"),
    [
        ([], ROWS, True, [1]),
        (["<|eom|>"], ROWS, True, [1]),  # no row of the embedding: never seen, never said
        (["<|eom|>"], ROWS + 1, False, [1, 5]),
        (["<|eom|>"], None, False, [1, 5]),
    ],
)
def test_a_stop_word_behind_the_last_row_of_the_embedding_is_not_exported(
    tmp_path: Path, more: list[str], rows: int | None, published: bool, stops: list[int]
) -> None:
    own = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.add_special_tokens(["<|end|>"])
    folder, target = tmp_path / "模 型", tmp_path / "made"
    folder.mkdir()
    target.mkdir()
    own.save(str(folder / "tokenizer.json"))
    trained = Trained(folder / "tokenizer.json", more)
    facts = tokenizer_facts(folder, target, trained, [*range(5, 5 + len(more)), 1], ["问 x"], rows)
    assert (facts["published"], facts["stop_ids"]) == (published, stops)
    saved = target / "tokenizer.json"
    assert saved.exists() is not published
    if not published:
        words = [one["content"] for one in json.loads(saved.read_text())["added_tokens"]]
        assert words == ["<|end|>", "<|eom|>"]
