"""A stand-in for llamafactory-cli: writes what the real one writes, and misbehaves as FAKE_MODE says.

ok | crash | stock-class | wrong-attention | dropped-row | nan | hang | ignore-term | early-end | orphan
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

MODE = os.environ.get("FAKE_MODE", "ok")
STEPS = int(os.environ.get("FAKE_STEPS", "4"))
STEP_S = float(os.environ.get("FAKE_STEP_S", "0"))


def say(text: str) -> None:
    os.write(1, (text + "\n").encode())


def write_adapter_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(Path.cwd() / "model")}))


def save_checkpoint(output: Path, step: int) -> None:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter_config(folder)
    for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt"):
        (folder / name).write_bytes(b"x" * 8)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": STEPS}))


def main() -> None:
    config = yaml.safe_load(Path(sys.argv[2]).read_text())
    output = Path(config["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    stop = {"asked": False}
    if MODE == "ignore-term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    if MODE == "crash":
        say("Traceback (most recent call last):")
        say("ValueError: Cannot find valid samples, check `data/README.md` for the data format.")
        sys.exit(1)
    record = json.loads(Path("run.json").read_text())
    expected = record["expected"]
    rows = expected["rows"] - (1 if MODE == "dropped-row" else 0)
    say("[INFO|trainer.py:1467] 2026-11-23 23:01:56,861 >> ***** Running training *****")
    for name, value in {
        "Num examples": rows,
        "Total train batch size (w. parallel, distributed & accumulation)": expected["global_batch"],
        "Total optimization steps": STEPS,
        "Number of trainable parameters": 131072,
    }.items():
        say(f"[INFO|trainer.py:1468] 2026-11-23 23:01:56,861 >>   {name} = {value:,}")
    if MODE != "stock-class":
        for rank in range(record["ranks"]):
            proof = {
                "rank": rank,
                "world_size": expected["world_size"],
                "class": "Qwen2ForCausalLM",
                "arithmetic": expected["arithmetic"],
                "weights": {expected["weights_dtype"]: 91456},
                "trainable_parameters": 131072,
                "autocast": expected["autocast"],
                "attention": "eager" if MODE == "wrong-attention" else expected["attention"],
                "device": "cpu",
                "float32_matmul_precision": "highest",
                "attention_dtype": expected["compute_dtype"],
                "linear_dtype": expected["compute_dtype"],
            }
            say(f"iisft-observed {os.environ['IISFT_PROOF']} {json.dumps(proof)}")
    if MODE == "orphan":
        # A rank of its own session, as torchrun makes them, that outlives its parent.
        subprocess.Popen(["sleep", "600"], start_new_session=True, env=os.environ | {"LOCAL_RANK": "0"})
    step = 0
    for step in range(1, STEPS + 1):
        loss = float("nan") if MODE == "nan" and step > 1 else 2.0 / step
        entry = {"current_steps": step, "total_steps": STEPS, "loss": loss, "lr": 1e-05, "epoch": step / STEPS}
        say(str({"loss": f"{loss:.4g}", "grad_norm": "2.102", "learning_rate": "1e-05", "epoch": f"{step / STEPS}"}))
        with (output / "trainer_log.jsonl").open("a") as log:
            log.write(json.dumps(entry) + "\n")
        if step % 2 == 0:
            save_checkpoint(output, step)
        if MODE == "early-end" and step == 2:
            break
        if MODE in ("hang", "ignore-term", "orphan"):
            while not stop["asked"]:
                time.sleep(0.01)
        elif STEP_S:
            time.sleep(STEP_S)
        if MODE == "nan" and step >= 3:
            time.sleep(600)
        if stop["asked"]:
            save_checkpoint(output, step)
            say("[INFO|trainer_jit_checkpoint.py:84] >> Immediate JIT checkpoint completed successfully")
            break
    (output / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": STEPS}))
    write_adapter_config(output)


if __name__ == "__main__":
    main()
