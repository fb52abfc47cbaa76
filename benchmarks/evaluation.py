"""How long `iisft evaluate` and `iisft report` take, and the memory of evaluating.

python benchmarks/evaluation.py [RUNS]: 100,000 predictions of JSON (answers of 40 to 500 characters
after prompts of 3,000) and 100,000 of text; a report of 50,000 steps with 1,000 predictions of two
checkpoints. The peers only read: Python's json over every line of the same files.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from timing import Command, in_turn, peak_memory_mb, report

from iisft.runs.record.folder import RunFolder

PREDICTIONS, STEPS, SHOWN = 100_000, 50_000, 1_000
TEXT = (
    "the report says that prices in the city rose again while factories near harbour closed "
    "for winter"
)
WORDS = TEXT.split()
CHINESE = "外交部发言人周五表示两国将继续会谈能源企业宣布新的投资计划港口恢复运营市场价格上涨"
READ = (
    "import json, sys\nfor name in sys.argv[1:]:\n    for line in open(name, "
    "encoding='utf-8'): json.loads(line)"
)


def answer(rng: random.Random, number: int, keep: bool) -> str:
    """What the first user's task asks for: a short object to drop a bulletin, a long one to keep
    it.
    """
    value: dict[str, object] = {"UUID": f"{number:08x}-5f64-4984-bf56-17f017256d00"}
    if keep:
        text = "".join(rng.choices(CHINESE, k=300))
        value |= {"TITLE": text[:20], "TEXT": text, "PLACES": rng.choices(WORDS, k=4)}
        value |= {
            "RATE": {
                name: rng.randrange(10)
                for name in ("policy", "economy", "science", "society", "scale")
            }
        }
    return json.dumps(value, ensure_ascii=False)


def json_rows(rng: random.Random, count: int, right: float) -> Iterator[str]:
    for number in range(count):
        keep = rng.random() < 0.5
        reference = answer(rng, number, keep)
        prediction = reference if rng.random() < right else answer(rng, number, rng.random() < 0.5)
        uuid = f"{number:08x}-5f64-4984-bf56-17f017256d00"
        row = {
            "row": number,
            "prompt": uuid + "".join(rng.choices(CHINESE, k=3000)),
            "reference": reference,
        }
        yield (
            json.dumps(
                row | {"prediction": prediction, "stop": "eos", "error": None}, ensure_ascii=False
            )
            + "\n"
        )


def text_rows(rng: random.Random, count: int) -> Iterator[str]:
    for number in range(count):
        reference = rng.choices(WORDS, k=rng.randint(20, 60))
        prediction = [word if rng.random() < 0.8 else rng.choice(WORDS) for word in reference]
        row = {
            "row": number,
            "prompt": " ".join(rng.choices(WORDS, k=300)),
            "reference": " ".join(reference),
        }
        yield json.dumps(row | {"prediction": " ".join(prediction)}) + "\n"


def write(file: Path, lines: Iterator[str]) -> None:
    """Line by line: what this process holds counts as its children's peak memory, too."""
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(lines)


def make_run(home: Path, rng: random.Random) -> list[Path]:
    folder = RunFolder(home / "runs" / "long")
    (folder.path / "predictions").mkdir(parents=True)
    folder.record.write_text(json.dumps({"id": "long", "preset_name": "mi50", "created": 0.0}))
    with folder.events.open("w") as stream:
        for step in range(1, STEPS + 1):
            values = {
                "loss": 1 + rng.random(),
                "learning_rate": 1e-5 / step,
                "grad_norm": 1 + rng.random(),
            }
            values |= {
                "step_s": 300 + rng.random(),
                "tokens_per_s": 900 * rng.random(),
                "vram_allocated_gib": 19.6,
            }
            event = {"time": 300.0 * step, "kind": "metrics", "step": step, "total_steps": STEPS}
            stream.write(json.dumps(event | values) + "\n")
    files = [folder.events]
    for checkpoint, right in (("25000", 0.5), ("final", 0.8)):
        files.append(folder.path / "predictions" / f"val@{checkpoint}.jsonl")
        write(files[-1], json_rows(random.Random(3), SHOWN, right))
    return files


def main(runs: int) -> None:
    rng, iisft = random.Random(1), str(Path(sys.executable).parent / "iisft")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, lines in (
            ("JSON", json_rows(rng, PREDICTIONS, 0.6)),
            ("text", text_rows(rng, PREDICTIONS)),
        ):
            file = folder / f"{kind}.jsonl"
            write(file, lines)
            peer = Command(
                f"json.loads of {file.stat().st_size / 1e6:.0f} MB",
                [sys.executable, "-c", READ, str(file)],
            )
            own = Command(f"iisft evaluate, 100,000 of {kind}", [iisft, "evaluate", str(file)])
            in_turn([peer, own], runs, warm_up=0)
            report([peer, own], peer)
            print(f"  peak memory {peak_memory_mb(own.argv):.0f} MB")
        files = make_run(folder, rng)
        target = folder / "report.html"
        peer = Command(
            "json.loads of events and predictions", [sys.executable, "-c", READ, *map(str, files)]
        )
        env = {"IISFT_HOME": str(folder)}
        own = Command(
            "iisft report, 50,000 steps", [iisft, "report", "long", "-o", str(target)], env=env
        )
        in_turn([peer, own], runs)
        report([peer, own], peer)
        print(f"  {target.stat().st_size / 1e6:.1f} MB; cores: {os.cpu_count()}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
