"""Generated Alpaca rows for the benchmarks: about 1.3 KB each, half of them Chinese, answers in JSON."""

import json
import random
from pathlib import Path

_CHINESE = (
    "你是一个专业情报分析师请评估输入文本的情报价值并进行结构化解析地缘政治国际关系政策法规经济金融科技突破社会安全"
)
_ENGLISH = (
    "the minister said ",
    "on Tuesday ",
    "that talks about trade ",
    "and security ",
    "would go on ",
    "despite ",
    "tariffs. ",
)


def write_rows(file: Path, count: int, seed: int = 1) -> None:
    """`count` rows as JSON lines. Bodies are cut from a pool, so that a gigabyte is written in a minute."""
    pick = random.Random(seed)
    chinese = "".join(pick.choices(_CHINESE, k=20_000))
    english = "".join(pick.choices(_ENGLISH, k=8_000))
    instructions = ("请评估下文的情报价值，只输出 JSON。", "Rate the text below. Answer in JSON only.")
    with file.open("w", encoding="utf-8", buffering=2**20) as stream:
        for number in range(count):
            if number % 2:
                start, body = pick.randrange(60_000), english
                text = body[start : start + 1_000]
            else:
                start = pick.randrange(19_000)
                text = chinese[start : start + 360]
            row = {
                "instruction": instructions[number % 2],
                "input": f"- UUID: {number:032x}\n\n{text}",
                "output": json.dumps(
                    {"UUID": f"{number:032x}", "TITLE": text[:20], "RATE": number % 10}, ensure_ascii=False
                ),
            }
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
