"""Wall time of `iisft predict` against llamafactory-cli's own do_predict, same run, rows and batch
size, greedy.

python benchmarks/predict.py [RUNS] [ROWS]; the demo is trained before. do_predict also computes
BLEU and ROUGE; what that takes (its log says when it begins) is in its time, as it is for whoever
runs it.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from timing import Command, in_turn, report

from iisft import demo

BINARIES = Path(sys.executable).parent
BATCH, NEW_TOKENS = 8, 128


class Anew(Command):
    """With the answers of the last time removed."""

    made: Path

    def run(self) -> float:
        shutil.rmtree(self.made, ignore_errors=True)
        return super().run()


def main(runs: int, rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        env = {"IISFT_HOME": folder, "OMP_NUM_THREADS": "1"}
        iisft = str(BINARIES / "iisft")
        bundled = demo.TRAIN_ROWS.read_text(encoding="utf-8").splitlines()
        file = workspace / "rows.jsonl"
        file.write_text(
            "\n".join((bundled * (rows // len(bundled) + 1))[:rows]) + "\n", encoding="utf-8"
        )
        Command(
            "the demo's run", [iisft, "train", "--preset", "demo", "--name", "run"], env=env
        ).run()
        Command("its rows", [iisft, "data", "stage", str(file), "--name", "bench"], env=env).run()
        run = workspace / "runs" / "run"
        theirs = Anew(
            "llamafactory-cli do_predict",
            [str(BINARIES / "llamafactory-cli"), "train", str(write_yaml(workspace))],
            env=env
            | {
                "CUDA_VISIBLE_DEVICES": "",
                "HF_HUB_OFFLINE": "1",
                "HF_MODULES_CACHE": str(run / "modules"),
            },
        )
        theirs.made = workspace / "do_predict"
        options = ["--batch-size", str(BATCH), "--max-tokens", str(NEW_TOKENS)]
        ours = Anew(
            "iisft predict", [iisft, "predict", "run", "--data", "bench", *options], env=env
        )
        ours.made = run / "predictions"
        in_turn([theirs, ours], runs)
        report([theirs, ours], theirs)
        print(f"{rows} rows, {differing(run, workspace)} answers differ; cores: {os.cpu_count()}")


def write_yaml(workspace: Path) -> Path:
    run = workspace / "runs" / "run"
    train = yaml.safe_load((run / "train.yaml").read_text())
    kept = (
        "template", "bf16", "fp16", "flash_attn", "cutoff_len", "stage", "finetuning_type",
        "trust_remote_code",
    )  # fmt: skip
    arguments = {name: train[name] for name in kept} | {
        "model_name_or_path": str(run / "model"),
        "adapter_name_or_path": str(run / "output"),
        "do_predict": True,
        "predict_with_generate": True,
        "eval_dataset": "bench",
        "dataset_dir": str(workspace / "data" / "bench"),
        "output_dir": str(workspace / "do_predict"),
        "per_device_eval_batch_size": BATCH,
        "do_sample": False,
        "max_new_tokens": NEW_TOKENS,
        "overwrite_cache": True,
        "use_cpu": True,
        "report_to": "none",
    }
    file = workspace / "predict.yaml"
    file.write_text(yaml.safe_dump(arguments))
    return file


def differing(run: Path, workspace: Path) -> int:
    theirs = [
        json.loads(line)["predict"]
        for line in (workspace / "do_predict" / "generated_predictions.jsonl").open()
    ]
    ours = [
        json.loads(line)["prediction"]
        for line in (run / "predictions" / "bench@final.jsonl").open()
    ]
    return sum(one != other for one, other in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 5, int(sys.argv[2]) if len(sys.argv) > 2 else 480
    )
