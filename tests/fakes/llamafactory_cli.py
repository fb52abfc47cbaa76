"""A stand-in for llamafactory-cli: writes what the real one writes, and misbehaves as FAKE_MODE
says.

ok | crash | random-head | narrow-mlp | no-cap | stock-class | wrong-attention | dropped-row |
nan | hang | ignore-stop | early-end | old-adapter |
orphan | crash-once-at-N | crash-at-N | hang-once | log:FILE (prints FILE after step FAKE_LOG_AT, 2
unless said, and ends with 1) | forward:FILE (the same in the first forward, FAKE_REPORTED ranks,
0 unless said, have reported, and FAKE_WAIT_FOR exists)

A rehearsed one (model/config.json says so) saves and evaluates as train.yaml says, and waits to be
killed; no-resume | other-loss | no-eval | no-checkpoint are for that.

FAKE_CARDS is a folder with one for each GPU; a trainer is on those that CUDA_VISIBLE_DEVICES names,
and writes to its file `shared` where another process is on one too.

Of several nodes (NNODES) each waits for the others; with NODE_RANK above 0 it writes no metrics,
checkpoints or adapter: those are the first node's.

FAKE_SAYS is printed before the training; FAKE_FIRST_ROWS (digests) and FAKE_REACH are in the proof.
"""

import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import yaml

MODE = os.environ.get("FAKE_MODE", "ok")
NODE, NODES = int(os.environ.get("NODE_RANK", "0")), int(os.environ.get("NNODES", "1"))
STEPS = int(os.environ.get("FAKE_STEPS", "4"))
STEP_S = float(os.environ.get("FAKE_STEP_S", "0"))
LOG_AT = int(os.environ.get("FAKE_LOG_AT", "2"))
IN_FORWARD = MODE.startswith("forward:")
REPORTED = int(os.environ.get("FAKE_REPORTED", "0" if IN_FORWARD else "1000000"))
WRONG_ATTENTION = MODE == "wrong-attention" or "FAKE_WRONG_ATTENTION" in os.environ


def say(text: str) -> None:
    os.write(1, (text + "\n").encode())


def said(**document: object) -> None:
    """With the run's word, as iisft's part of the real trainer says it."""
    say(f"iisft-said {os.environ['IISFT_PROOF']} {json.dumps(document)}")


def log(message: str) -> None:
    say(f"[INFO|trainer.py:1467] 2026-11-23 23:01:56,861 >> {message}")
    said(log=message)


LAYER = "model.layers.0.self_attn.q_proj"


def matrices() -> dict[str, list[int]]:
    """Shapes of an adapter on one layer, by the names in the model."""
    rank = yaml.safe_load(Path("train.yaml").read_text()).get("lora_rank", 8)
    width = json.loads(Path("model/config.json").read_text()).get("hidden_size", 4)
    return {f"{LAYER}.lora_A.weight": [rank, width], f"{LAYER}.lora_B.weight": [width, rank]}


def write_adapter(folder: Path, step: int) -> None:
    config = yaml.safe_load(Path("train.yaml").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "base_model_name_or_path": str(Path.cwd() / "model"),
                "r": config.get("lora_rank", 8),
                "lora_alpha": config.get("lora_alpha", 16),
                "target_modules": ["q_proj"],
            }
        )
    )
    header, body = {}, b""
    for name, shape in matrices().items():
        values = struct.pack("<f", step) * (shape[0] * shape[1])
        header[f"base_model.model.{name}"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(body), len(body) + len(values)],
        }
        body += values
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + body
    (folder / "adapter_model.safetensors").write_bytes(content)


def loaded_adapter(step: int) -> str:
    """The digest that the real trainer would report of the adapter of that step."""
    digest = hashlib.sha256()
    for name, shape in matrices().items():
        digest.update(f"{name} {shape}\n".encode())
        digest.update(struct.pack("<f", step) * (shape[0] * shape[1]))
    return digest.hexdigest()[:16]


def save_checkpoint(output: Path, step: int) -> None:
    if NODE:
        return
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    write_adapter(folder, step)
    (folder / "vocab.txt").write_bytes(bytes(int(os.environ.get("FAKE_CHECKPOINT_BYTES", "0"))))
    size = json.loads(Path("run.json").read_text())["expected"]["world_size"]
    states = [f"rng_state_{rank}.pth" for rank in range(size)] if size > 1 else ["rng_state.pth"]
    for name in ("optimizer.pt", "scheduler.pt", *states):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("data.pkl", f"step {step}")
    (folder / "trainer_state.json").write_text(
        json.dumps({"global_step": step, "max_steps": STEPS})
    )


def lives(pid: str) -> bool:
    try:
        return bool(Path("/proc", pid, "cmdline").read_bytes())  # a zombie has none
    except OSError:
        return False


def take_cards() -> dict[str, object] | None:
    """What the witness says of the GPUs that it sees; where nvidia-smi would name this process."""
    names = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    if not any(variables.values()):
        return None
    cards = Path(os.environ["FAKE_CARDS"])
    seen = [card for card in variables["CUDA_VISIBLE_DEVICES"].split(",") if card]
    for card in seen:
        others = [entry for entry in (cards / card).iterdir() if lives(entry.name)]
        (cards / card / str(os.getpid())).touch()
        if others:
            ages = [f"{time.time() - entry.stat().st_mtime:.1f} s" for entry in others]
            with (cards / "shared").open("a") as shared:
                shared.write(f"{Path.cwd().name} on {card} beside {others}, there for {ages}\n")
    if "FAKE_SEES" in os.environ:
        variables["CUDA_VISIBLE_DEVICES"] = os.environ["FAKE_SEES"]
    return {"variables": variables, "buses": [""] * len(seen)}


def await_the_kill(output: Path) -> None:
    file = output / "rehearsed.json"
    if not file.exists():
        file.with_suffix(".tmp").write_text('{"checkpoint_s": 0.25, "eval_s": 0.5}')
        file.with_suffix(".tmp").replace(file)
        time.sleep(600)


def once(name: str) -> bool:
    """True at the first call of a run's whole life."""
    try:
        Path(f"{name}{NODE or ''}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def main() -> None:
    config = yaml.safe_load(Path(sys.argv[2]).read_text())
    output = Path(config["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    cache = Path(os.environ["HF_DATASETS_CACHE"])
    cache.mkdir(exist_ok=True)
    (cache / "rows.arrow").touch()
    stop = {"asked": False}
    signal.signal(signal.SIGTERM, lambda *_: stop.update(asked=True))
    signal.signal(
        signal.SIGUSR1, lambda *_: say("Thread 0x1 (most recent call first): in fake all_reduce")
    )
    stop_file = Path(os.environ["IISFT_STOP_FILE"])

    def asked() -> bool:
        return MODE != "ignore-stop" and (stop["asked"] or stop_file.exists())

    begin = 0
    if config.get("overwrite_output_dir"):
        (output / "trainer_log.jsonl").unlink(missing_ok=True)
    rehearsed = json.loads(Path("model/config.json").read_text()).get("iisft_rehearsed")
    every = config["save_steps"] if rehearsed else 2
    loaded = 0
    if "resume_from_checkpoint" in config:
        state = Path(config["resume_from_checkpoint"], "trainer_state.json").read_text()
        loaded = json.loads(state)["global_step"]
        begin = 0 if MODE == "no-resume" else loaded
    if MODE == "crash":
        say("Traceback (most recent call last):")
        say("ValueError: Cannot find valid samples, check `data/README.md` for the data format.")
        sys.exit(1)
    say(os.environ.get("FAKE_SAYS", ""))
    record = json.loads(Path("run.json").read_text())
    expected = record["expected"]
    rows = expected["rows"] - (1 if MODE == "dropped-row" else 0)
    cards = take_cards()
    order = Path("resume-order.json")
    met = f"met{json.loads(order.read_text())['word'] if order.exists() else ''}-"
    Path(f"{met}{NODE}").touch()
    while not all(Path(f"{met}{node}").exists() for node in range(NODES)):
        time.sleep(0.01)
    log("***** Running training *****")
    for name, value in {
        "Num examples": rows,
        "Total train batch size (w. parallel, distributed & accumulation)": expected[
            "global_batch"
        ],
        "Total optimization steps": STEPS,
        "Number of trainable parameters": 131072,
    }.items():
        log(f"  {name} = {value:,}")
    if "FAKE_EVAL_FIRST" in os.environ:
        entry = {"current_steps": 0, "total_steps": STEPS, "eval_loss": 2.5, "epoch": 0.0}
        (output / "trainer_log.jsonl").write_text(json.dumps(entry) + "\n")
    if MODE != "stock-class":
        for local in range(min(record["ranks"], REPORTED)):
            rank = NODE * record["ranks"] + local
            proof = {
                "rank": rank,
                "world_size": expected["world_size"],
                "class": "Qwen2ForCausalLM",
                "arithmetic": expected["arithmetic"],
                "weights": {expected["weights_dtype"]: 91456},
                "trainable_parameters": 131072,
                "autocast": expected["autocast"],
                "attention": "eager" if WRONG_ATTENTION else expected["attention"],
                "device": "cpu",
                "cards": cards,
                "float32_matmul_precision": "highest",
                "attention_dtype": expected["compute_dtype"],
                "linear_dtype": expected["compute_dtype"],
                "layers_kept": int(
                    os.environ.get("FAKE_LAYERS_KEPT", expected.get("layers_kept", 0))
                ),
                "loaded": {
                    "missing": [1, "lm_head.weight"] if MODE == "random-head" else [0],
                    "unexpected": [0],
                    "mismatched": [0],
                },
                "adapted": {"q_proj": 1},
                "adapter": (
                    loaded_adapter(loaded - (MODE == "old-adapter"))
                    if loaded
                    else expected.get("adapter")
                ),
                "products": {
                    "float32": 2,
                    ("bfloat16" if MODE == "narrow-mlp" else expected["compute_dtype"]): 7,
                },
                "kernels": {
                    name: 2 * (expected["attention"] == name)
                    for name in ("sdpa", "eager", "eager_blocks")
                },
                "softcap": 50.0 if MODE == "no-cap" else None,
                "capped": False,
                "first_batch": {
                    "shape": [1, 8],
                    "sha256": "0123456789abcdef",
                    "rows": json.loads(os.environ.get("FAKE_FIRST_ROWS", "null")),
                },
                "reach": json.loads(os.environ.get("FAKE_REACH", "null")),
            }
            say(f"iisft-observed {os.environ['IISFT_PROOF']} {json.dumps(proof)}")
    if IN_FORWARD:
        while not Path(os.environ.get("FAKE_WAIT_FOR", "run.json")).exists():
            time.sleep(0.01)
        say(Path(MODE.removeprefix("forward:")).read_text())
        sys.exit(1)
    if MODE == "orphan":
        # A rank of its own session, as torchrun makes them, that outlives its parent.
        subprocess.Popen(
            ["sleep", "600"], start_new_session=True, env=os.environ | {"LOCAL_RANK": "0"}
        )
    step = begin
    for step in range(begin + 1, STEPS + 1):
        loss = float("nan") if MODE == "nan" and step > 1 else 2.0 / step
        loss += 0.125 * (MODE == "other-loss" and begin > 0)
        entry = {
            "current_steps": step,
            "total_steps": STEPS,
            "loss": loss,
            "lr": 1e-05,
            "epoch": step / STEPS,
            "total_tokens": 100 * step,
        }
        printed = {"loss": f"{loss:.4g}", "grad_norm": "2.102", "learning_rate": "1e-05"}
        say(str(printed | {"epoch": f"{step / STEPS}"}))
        said(step=step, grad_norm=2.102, **({"spent": {"forward": 0.5}} if rehearsed else {}))
        if not NODE:
            with (output / "trainer_log.jsonl").open("a") as metrics:
                metrics.write(json.dumps(entry) + "\n")
        if step % every == 0 and MODE != "no-checkpoint":
            save_checkpoint(output, step)
        if rehearsed and step % config.get("eval_steps", STEPS + 1) == 0 and MODE != "no-eval":
            entry = {"current_steps": step, "total_steps": STEPS, "eval_loss": 0.75, "epoch": 1.0}
            with (output / "trainer_log.jsonl").open("a") as metrics:
                metrics.write(json.dumps(entry) + "\n")
        if step == rehearsed:
            await_the_kill(output)
        if MODE == "early-end" and step == 2:
            break
        if MODE in ("hang", "ignore-stop", "orphan") or (
            MODE == "hang-once" and step == 3 and once("hung")
        ):
            while not asked():
                time.sleep(0.01)
        elif STEP_S:
            time.sleep(STEP_S)
        if MODE == "nan" and step >= 3:
            time.sleep(600)
        if f"crash-at-{step}" == MODE or (f"crash-once-at-{step}" == MODE and once("crashed")):
            os.kill(os.getpid(), signal.SIGKILL)
        if MODE.startswith("log:") and step == LOG_AT:
            say(Path(MODE.removeprefix("log:")).read_text())
            sys.exit(1)
        if asked():
            save_checkpoint(output, step)
            break
    if "FAKE_EVAL_LAST" in os.environ:
        entry = {"current_steps": step, "total_steps": STEPS, "eval_loss": 0.75, "epoch": 1.0}
        with (output / "trainer_log.jsonl").open("a") as metrics:
            metrics.write(json.dumps(entry | {"total_tokens": 100 * step}) + "\n")
    if NODE:
        return
    (output / "trainer_state.json").write_text(
        json.dumps({"global_step": step, "max_steps": STEPS})
    )
    write_adapter(output, step)


if __name__ == "__main__":
    main()
