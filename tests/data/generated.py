"""Rows and small tokenizers for the data tests: half Chinese, with everything that a tokenizer
could stumble over.
"""

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

WORDS = (  # noqa: SIM905 - a list would take forty lines
    "the minister said on Tuesday that exports of rare earths fell by 12.5 % "
    "央行 今天 宣布 下调 存款 准备金 率 边境 冲突 升级 ， 。 "
    "🇨🇳 👩‍👩‍👧 naïve café résumé \t \n\n e\u0301 <|im_end|> {{idx}} {{content}} "
    "http://example.com/a%20b?c=1 https://www.chinanews.com.cn/tp/2025/11-12/10514600.shtml "
    "94a1d86d-6c1c-4f80-82e8-2af69b378d2d ''' \\n 0x1F"
).split(" ")

# The pattern that Qwen2.5, Llama 3 and GPT-4 split texts by, before byte-level BPE.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def text(rng: random.Random, words: int) -> str:
    """About so many words with no, or one, blank between them."""
    return "".join(rng.choice(WORDS) + rng.choice(("", " ", " ")) for _ in range(words)) or "x"


def article(rng: random.Random, words: int) -> str:
    """A text as the first user's rows have it: metadata lines, a heading, a body."""
    identity = f"{rng.getrandbits(32):08x}-6c1c-4f80-82e8-{rng.getrandbits(48):012x}"
    return (
        f"## metadata\n- UUID: {identity}\n- title: {text(rng, 6).strip()}\n- authors: "
        "['Reuters']\n"
        f"- informant: https://www.investing.com/news/economy-news/{rng.getrandbits(40)}\n\n## "
        "正文内容\n"
        f"{text(rng, words)}"
    )


def alpaca_rows(count: int, seed: int, *, longest: int = 400) -> list[dict[str, Any]]:
    """Rows with all five keys.

    Some have a system text, a history of up to three turns, an empty input.
    """
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        body = (
            article(rng, rng.randrange(longest))
            if rng.random() < 0.7
            else text(rng, rng.randrange(1, longest))
        )
        rows.append(
            {
                "instruction": f"评估第 {number} 条 and answer in JSON.",
                "input": body if rng.random() < 0.9 else "",
                "output": json.dumps(
                    {"n": number, "t": text(rng, rng.choice((1, 5, 40, 150)))}, ensure_ascii=False
                ),
                "system": text(rng, 12) if rng.random() < 0.2 else "",
                "history": [
                    [text(rng, rng.randrange(1, 60)), text(rng, rng.randrange(1, 60))]
                    for _ in range(rng.choice((0, 0, 0, 1, 3)))
                ],
            }
        )
    return rows


def message_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Conversations as they are staged; some turns are answers of tools."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        turns = []
        for turn in range(rng.choice((1, 2, 4))):
            role = "user" if turn == 0 or rng.random() < 0.5 else "observation"
            turns.append({"role": role, "content": text(rng, rng.randrange(1, 150))})
            turns.append({"role": "assistant", "content": text(rng, rng.randrange(1, 80))})
        rows.append(
            {"messages": turns, "system": text(rng, 9) if rng.random() < 0.5 else "", "tools": ""}
        )
    return rows


def tool_rows(count: int, seed: int, template: Any) -> list[dict[str, Any]]:
    """Conversations with tools: calls, several at once, a thought or text beside them, where the
    template can write these.
    """
    rng = random.Random(seed)
    tools = json.dumps(
        [
            {"name": "查", "description": text(rng, 9), "parameters": _parameters(rng)},
            {
                "type": "function",
                "function": {"name": "g", "description": "", "parameters": _parameters(rng)},
            },
        ],
        ensure_ascii=False,
    )
    opening, closing = template.tool_call_words
    rows = []
    for number in range(count):
        values = [
            text(rng, 5),
            12345678901234567890123,
            1.5,
            None,
            True,
            [1, "x"],
            {"b": 2, "a": "c"},
        ]
        call = {"name": "g", "arguments": {f"k{i}": rng.choice(values) for i in range(3)}}
        calls = [call, {"name": "查", "arguments": {}}]
        parallel = number % 2 and template.call_format != "glm4"
        said = json.dumps(calls if parallel else call, ensure_ascii=False)
        if not template.system_in_user and number % 4 >= 2:
            thought = "".join((template.thought_words[0], text(rng, 9), template.thought_words[1]))
            beside = f"{text(rng, 3)}\n{opening}\n{said}\n{closing}"
            said = thought + said if number % 4 == 2 else beside
        turns = [
            ("user", text(rng, 20)),
            ("function_call", said),
            ("observation", text(rng, 20)),
            ("assistant", text(rng, 9)),
        ]
        messages = [{"role": role, "content": content} for role, content in turns]
        rows.append(
            {
                "messages": messages,
                "system": text(rng, 9) if number % 3 == 0 else "",
                "tools": tools if number % 3 else "",
            }
        )
    return rows


def _parameters(rng: random.Random) -> dict[str, Any]:
    about = {
        "city": {"type": "string", "description": text(rng, 4), "enum": ["a", "北京"]},
        "days": {"type": "array", "items": {"type": "integer"}},
    }
    return {"type": "object", "properties": about, "required": ["city"]}


def make_tokenizer(
    folder: Path, *, special: list[str], config: dict[str, Any], model_type: str
) -> Path:
    """A model folder with nothing but a byte-level BPE tokenizer of 2,000 tokens, as the library
    itself saves one.
    """
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(7)
    tokenizer.train_from_iterator((article(rng, 200) for _ in range(60)), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return folder


def qwen_like(folder: Path) -> Path:
    """As Qwen2.5 publishes it."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
    }
    return make_tokenizer(folder, special=special, config=config, model_type="qwen2")


def llama_like(folder: Path) -> Path:
    """As Llama 3 publishes it, with a bos token and a token that only tokenizer_config.json has."""
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    added = {
        "content": "<|eom_id|>",
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "single_word": False,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|end_of_text|>",
        "added_tokens_decoder": {"2000": {**added, "special": True}},
    }
    return make_tokenizer(folder, special=special, config=config, model_type="llama")


def glm_like(folder: Path) -> Path:
    """As GLM-4 publishes it."""
    special = [
        "<|endoftext|>",
        "[gMASK]",
        "<sop>",
        "sop",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
    ]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    return make_tokenizer(folder, special=special, config=config, model_type="glm4")


def llama2_like(folder: Path, *, legacy: bool) -> Path:
    """As Llama 2 publishes it: a SentencePiece model, whose class in transformers makes the half of
    it anew.
    """
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*|[^▁]+"), "isolated")
    single_bytes = [f"<0x{number:02X}>" for number in range(256)]
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special + single_bytes, show_progress=False
    )
    rng = random.Random(7)
    tokenizer.train_from_iterator((article(rng, 200) for _ in range(60)), trainer)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = None
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [
        token for token in document["added_tokens"] if token["content"] in special
    ]
    (folder / "tokenizer.json").write_text(
        json.dumps(document, ensure_ascii=False), encoding="utf-8"
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**config, "legacy": legacy}), encoding="utf-8"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    return folder
