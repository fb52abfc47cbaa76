"""What a tokenizer came to be in training: for an export (merge_adapter.py), and for what is
foreseen of one (build_model.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tokenizer_facts(
    folder: Path,
    target: Path,
    tokenizer: Any,
    stops: Sequence[int | None],
    texts: Sequence[str],
    rows: int | None,
) -> dict[str, Any]:
    """The tokenizer after LLaMA-Factory's changes to it.

    `published`: whether the file of the base model (`folder`), read as it stands, makes the same
    tokens of the same number of words; where it does not, tokenizer.json (in `target`) and `added`
    are of the changed one. `rows` are those of the embedding, if there is one: LLaMA-Factory adds
    each stop word that a tokenizer lacks (<|eom_id|> to Llama 3.0's) behind its last row, where no
    model can say it.
    """
    published = same_tokens(folder, tokenizer, texts, rows)
    if not published:
        tokenizer.save_pretrained(target)
    stop = [i for i in stops if i is not None and (rows is None or i < rows)]
    stop.sort(key=lambda i: i != tokenizer.eos_token_id)
    bos = tokenizer.bos_token_id
    ids = tokenizer.encode("x") if bos is not None else []
    return {
        "published": published,
        "size": len(tokenizer),
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
        "pad_id": tokenizer.pad_token_id,
        "stop_ids": stop,
        "adds_bos": ids[:1] == [bos],
        "added": {
            str(number): token.__getstate__()
            for number, token in tokenizer.added_tokens_decoder.items()
        },
    }


def same_tokens(folder: Path, tokenizer: Any, texts: Sequence[str], rows: int | None) -> bool:
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return False
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    # a token of the template that the file does not have
    known = raw.get_vocab()
    beyond = {
        str(token)
        for number, token in tokenizer.added_tokens_decoder.items()
        if str(token) not in known and (rows is None or number < rows)
    }
    return not beyond and all(
        raw.encode(text, add_special_tokens=False).ids
        == tokenizer.encode(text, add_special_tokens=False)
        for text in texts
    )
