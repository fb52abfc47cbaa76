"""Writes the demo's rows, src/iisft/demo/triage.jsonl and triage_eval.jsonl: the same bytes every
time.

A bulletin comes in, English or Chinese; a one-line JSON answer goes out: keep it (topic and place),
or drop it.
"""

import json
import random
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "src" / "iisft" / "demo"
TRAIN_ROWS, EVAL_ROWS = 240, 32

INSTRUCTIONS = {
    "en": "Triage this bulletin. Answer with one line of JSON.",
    "zh": "请筛选这条简报，用一行 JSON 回答。",
}
PLACES = {
    "Oslo": "奥斯陆", "Lagos": "拉各斯", "Lima": "利马", "Hanoi": "河内", "Izmir": "伊兹密尔",
    "Quito": "基多", "Tunis": "突尼斯", "Porto": "波尔图", "Riga": "里加", "Perth": "珀斯",
    "Busan": "釜山", "Accra": "阿克拉",
}  # fmt: skip
TOPICS = {
    "energy": {
        "en": [
            "The grid operator in {place} cut power to {n} households after a transformer fire.",
            "A {n} megawatt wind park near {place} was connected to the grid this morning.",
            "{place}: fuel reserves cover only {n} more days, the ministry said.",
        ],
        "zh": [
            "{place}电网公司在变压器起火后对{n}户居民停电。",
            "{place}附近一座{n}兆瓦的风电场今晨并网。",
            "{place}：能源部称燃料储备只够{n}天。",
        ],
    },
    "transport": {
        "en": [
            "All trains between the port of {place} and the capital are suspended for {n} hours.",
            "A bridge in {place} was closed; {n} lorries wait on the coastal road.",
            "The airport of {place} cancelled {n} flights because of a radar failure.",
        ],
        "zh": [
            "{place}港口至首都的列车全部停运{n}小时。",
            "{place}一座大桥关闭，{n}辆卡车滞留沿海公路。",
            "{place}机场因雷达故障取消{n}个航班。",
        ],
    },
    "weather": {
        "en": [
            "Flood warning for {place}: the river rose by {n} centimetres overnight.",
            "A storm with gusts of {n} km/h reaches {place} this evening.",
        ],
        "zh": [
            "{place}发布洪水预警：河水一夜上涨{n}厘米。",
            "阵风{n}公里每小时的风暴今晚抵达{place}。",
        ],
    },
    "health": {
        "en": [
            "Hospitals in {place} report {n} cases of food poisoning since Monday.",
            "The clinic in {place} received {n} doses of measles vaccine.",
        ],
        "zh": ["{place}医院报告自周一以来{n}例食物中毒。", "{place}诊所收到{n}剂麻疹疫苗。"],
    },
}
NOISE = {
    "en": [
        "Ten tips for a better breakfast, number {n} will surprise you.",
        "Win a weekend in {place}! Only {n} tickets are left, click now.",
        "Horoscope: day {n} of the month brings luck in love.",
        "Our reader from {place} sent {n} photos of a sleeping cat.",
        "Big sale in {place}: {n} percent off all shoes until Sunday.",
        "The actor was seen in {place} with {n} suitcases and a new haircut.",
    ],
    "zh": [
        "十个早餐小窍门，第{n}个让你意想不到。",
        "赢取{place}周末游！仅剩{n}张票，立即点击。",
        "星座运势：本月第{n}天桃花运旺。",
        "{place}的读者寄来{n}张睡猫照片。",
        "{place}大促销：所有鞋子{n}折，周日截止。",
        "那位演员带着{n}个行李箱和新发型现身{place}。",
    ],
}
SOURCES = {"en": ["Radio", "Wire", "Daily", "Mail"], "zh": ["电台", "通讯社", "日报", "邮件"]}


def make_row(random_: random.Random) -> dict[str, str]:
    language = random_.choice(["en", "zh"])
    place = random_.choice(list(PLACES))
    keep = random_.random() < 0.5
    topic = random_.choice(list(TOPICS))
    template = random_.choice(TOPICS[topic][language] if keep else NOISE[language])
    text = template.format(
        place=place if language == "en" else PLACES[place], n=random_.randint(2, 98)
    )
    answer = {"keep": True, "topic": topic, "place": place} if keep else {"keep": False}
    source = random_.choice(SOURCES[language])
    return {
        "instruction": INSTRUCTIONS[language],
        "input": f"[{source} {random_.randint(6, 23):02d}:{random_.randint(0, 59):02d}] {text}",
        "output": json.dumps(answer),
    }


def main() -> None:
    random_ = random.Random(20)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < TRAIN_ROWS + EVAL_ROWS:
        row = make_row(random_)
        rows.setdefault(row["input"], row)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()]
    (FOLDER / "triage.jsonl").write_text("".join(lines[:TRAIN_ROWS]), encoding="utf-8")
    (FOLDER / "triage_eval.jsonl").write_text("".join(lines[TRAIN_ROWS:]), encoding="utf-8")


if __name__ == "__main__":
    main()
