"""Generated Alpaca rows for the benchmarks: about 1.3 KB each, half of them Chinese, answers in
JSON, all different.
"""

import random
from pathlib import Path

_CHINESE = (
    "你是一个专业情报分析师请评估输入文本的情报价值并进行结构化解析"
    "地缘政治国际关系政策法规经济金融科技突破社会安全"
)
_ENGLISH = (
    "the minister said ",
    "on Tuesday ",
    "that talks about trade ",
    "and security ",
    "would go on ",
    "despite ",
)
_INSTRUCTIONS = ("请评估下文的情报价值，只输出 JSON。", "Rate the text below. Answer in JSON only.")


def write_rows(file: Path, size: int, seed: int = 1) -> int:
    """Write rows as JSON lines until the file has `size` bytes; returns how many."""
    pick = random.Random(seed)
    chinese = "".join(pick.choices(_CHINESE, k=100_000))
    english = "".join(pick.choices(_ENGLISH, k=20_000))
    number = 0
    with file.open("w", encoding="utf-8", buffering=2**20) as stream:
        while number % 1000 or stream.tell() < size:
            for _ in range(1000):
                stream.write(_row(number, chinese, english, pick))
                number += 1
    return number


def _row(number: int, chinese: str, english: str, pick: random.Random) -> str:
    if number % 2:
        start = pick.randrange(90_000)
        text = english[start : start + 1_000]
    else:
        start = pick.randrange(99_000)
        text = chinese[start : start + 360]
    answer = (
        f'{{\\"UUID\\": \\"{number:032x}\\", \\"TITLE\\": \\"{text[:20]}\\", \\"RATE\\": '
        f"{number % 10}}}"
    )
    return (
        f'{{"instruction": "{_INSTRUCTIONS[number % 2]}", "input": "- UUID: '
        f'{number:032x}\\n\\n{text}", '
        f'"output": "{answer}"}}\n'
    )
