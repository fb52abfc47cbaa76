"""The token account against the tokenizer's own encode_batch over the same texts, in turn (A B C A
B C), one process.

python benchmarks/data_tokens.py [ROUNDS] [ROWS]

3,000 (or ROWS) generated Alpaca rows of 400 to 2,600 tokens, half of them Chinese; a byte-level BPE
of 16,000 tokens trained on a part of them. The account reads conversations, renders template qwen,
counts, applies LLaMA-Factory's truncation and adds up.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from iisft.data.read.rows import Row
from iisft.data.tokens import counting
from iisft.data.tokens.account import Account
from iisft.data.tokens.limit import Limit
from iisft.data.tokens.tokenization import Tokenization

ROWS = 3_000
BATCH = 256
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def generated_rows(count: int) -> list[dict[str, str]]:
    rng = random.Random(42)
    english = [
        "".join(rng.choice("etaoinshrdlucmfwypvbgk") for _ in range(rng.randrange(2, 11)))
        for _ in range(6_000)
    ]
    chinese = [
        "".join(chr(rng.randrange(0x4E00, 0x5E00)) for _ in range(rng.choice((1, 2, 2, 3))))
        for _ in range(6_000)
    ]
    rows = []
    for number in range(count):
        words, joint = (english, " ") if number % 2 else (chinese, "")
        body = joint.join(
            words[int(6_000 * rng.random() ** 3)] for _ in range(rng.randrange(300, 1_500))
        )
        answer = {
            "UUID": f"{rng.getrandbits(128):032x}",
            "TITLE": joint.join(rng.choices(words, k=rng.choice((8, 80)))),
        }
        text = f"## metadata\n- UUID: {answer['UUID']}\n\n## text\n{body}"
        rows.append(
            {
                "instruction": "评估 this text.",
                "input": text,
                "output": json.dumps(answer, ensure_ascii=False),
            }
        )
    return rows


def make_model(folder: Path, rows: list[dict[str, str]]) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((row["input"] for row in rows[:800]), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return folder


def texts_of(rows: list[dict[str, str]], system: str) -> list[str]:
    texts = []
    for row in rows:
        question = f"{row['instruction']}\n{row['input']}"
        texts.append(f"<|im_start|>system\n{system}<|im_end|>\n")
        texts.append(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        texts.append(f"{row['output']}<|im_end|>\n")
    return texts


def main(rounds: int, count: int) -> None:
    rows = generated_rows(count)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), rows)
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        texts = texts_of(rows, Tokenization(model, "qwen", {}).template.default_system)
        total = 0

        def account() -> None:
            nonlocal total
            total = 0
            limit = Limit(Tokenization(model, "qwen", {}), 1024, {})
            found = Account(1024, limit.room)
            for row, pairs in counting.counted(
                (Row(i, i, row) for i, row in enumerate(rows, 1)), limit
            ):
                row_tokens = limit.cut(pairs)
                counting.add(found, row, row_tokens)
                total += row_tokens.total
            found.as_json()

        def own(encode: Callable[..., list]) -> Callable[[], None]:
            def run() -> None:
                count = 0
                for start in range(0, len(texts), BATCH):
                    count += sum(
                        map(len, encode(texts[start : start + BATCH], add_special_tokens=False))
                    )
                assert count == total, (count, total)

            return run

        ways = {
            "iisft token account": account,
            "tokenizers encode_batch": own(tokenizer.encode_batch),
            "tokenizers encode_batch_fast": own(tokenizer.encode_batch_fast),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        # of all threads: steady on a shared machine
        processor: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(-1, rounds):
            for name, way in ways.items():
                started, used = time.perf_counter(), time.process_time()
                way()
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - started)
                    processor[name].append(time.process_time() - used)
        print(f"{count:,} rows, {total:,} tokens")
        for name, taken in seconds.items():
            print(
                f"{name:<30} median {statistics.median(taken):6.2f} s ({min(taken):.2f} .. "
                f"{max(taken):.2f}), "
                f"{total / statistics.median(taken):>9,.0f} tokens/s; the account takes "
                f"{_ratio(seconds, name):.3f} of its time, {_ratio(processor, name):.3f} of its "
                "processor time"
            )


def _ratio(measured: dict[str, list[float]], name: str) -> float:
    """Median over the turns of the account against another way."""
    mine = measured["iisft token account"]
    return statistics.median(own / peer for own, peer in zip(mine, measured[name], strict=True))


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["7", str(ROWS)][len(sys.argv) - 1 :])))
