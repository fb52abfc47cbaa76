"""A stand-in for the scripts of iisft/child that load a model: the same messages, no torch.

argv[1] is the script's path. FAKE_CHILD: ok | other-precision | die-after:N (batches) | slow (does
as many batches as the file FAKE_GATE says) | log:FILE (prints FILE to its log and ends with 1) |
failed-rows | no-answer | differs | disk-full | resized | untied | gguf-differs | other-prompt
"""

import json
import os
import select
import struct
import sys
from pathlib import Path

MODE = os.environ.get("FAKE_CHILD", "ok")


def send(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def receive() -> dict[str, object]:
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    return json.loads(line)


def prove() -> None:
    record = json.loads(Path("run.json").read_text())
    expected = record["expected"]
    send(
        kind="observed",
        proof={
            "weights": {expected["weights_dtype"]: 100},
            "linear_dtype": "bfloat16" if MODE == "other-precision" else expected["compute_dtype"],
            "attention_dtype": "bfloat16"
            if MODE == "other-precision"
            else expected["compute_dtype"],
            "autocast": expected["autocast"],
            "attention": expected["attention"],
            "arithmetic": expected["arithmetic"],
            "float32_matmul_precision": "highest",
            "device": "cpu",
        },
    )
    receive()


def predict(spec: dict) -> None:
    prove()
    data = [
        json.loads(line)
        for line in Path(spec["data"]["file"]).read_text(encoding="utf-8").splitlines()
    ]
    for job in spec["jobs"]:
        send(kind="job", which=job["which"])
        rest = [number for number in range(spec["count"], 0, -1) if number not in job["done"]]
        batches = [
            rest[start : start + spec["batch_size"]]
            for start in range(0, len(rest), spec["batch_size"])
        ]
        for number, batch in enumerate(batches, 1):
            while MODE == "slow" and not allowed(number):
                if select.select([0], [], [], 0.01)[0]:  # the end of it: nobody listens any more
                    os._exit(0)
            send(
                kind="rows",
                rows=[row(at, data[at - 1], job) for at in batch],
                share=number / len(batches),
            )
            if f"die-after:{number}" == MODE:
                os._exit(1)


def allowed(batch: int) -> bool:
    gate = Path(os.environ["FAKE_GATE"])
    return gate.exists() and batch <= int(gate.read_text() or "0")


def row(number: int, data: dict, job: dict) -> dict[str, object]:
    failed = MODE == "no-answer" or (MODE == "failed-rows" and number % 2 == 0)
    return {
        "row": number,
        "prompt": data["instruction"],
        "reference": data["output"],
        "prediction": "" if failed else f"{job['which']} says {number}",
        "prompt_tokens": 10 * number,
        "tokens": 0 if failed else 5,
        "stop": None if failed else ("length" if number == 1 else "eos"),
        "error": "out of memory with a prompt of 10 tokens" if failed else None,
    }


def chat() -> None:
    prove()
    send(kind="ready")
    while True:
        asked = receive()
        if "messages" in asked:
            if asked["messages"][-1]["content"] == "too long":
                send(kind="failed", message="the conversation has 9 tokens, the context ends at 8")
                continue
            if asked["messages"][-1]["content"] == "endless":
                while not select.select([0], [], [], 0.02)[0]:
                    send(kind="text", text="and on ")
                send(kind="answered")
                continue
            for text in (
                "asked ",
                str(len(asked["messages"])),
                " of ",
                asked["messages"][-1]["content"],
            ):
                send(kind="text", text=text)
            send(kind="answered")


def merge(spec: dict) -> None:
    target = Path(spec["target"])
    if spec["adapter"]:
        header = json.dumps({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}).encode()
        (target / "model.safetensors").write_bytes(
            struct.pack("<Q", len(header)) + header + bytes(8)
        )
    if MODE == "disk-full":
        sys.stderr.write("OSError: [Errno 28] No space left on device\n")
        os._exit(1)
    if MODE == "resized":
        (target / "tokenizer.json").write_text('{"resized": true}')
    send(
        kind="merged",
        rows=320 if MODE == "resized" else None,
        tied=MODE not in ("resized", "untied"),
        tokenizer={
            "published": MODE != "resized",
            "size": 300,
            "eos": "<|im_end|>",
            "pad": "<|endoftext|>",
            "pad_id": 0,
            "stop_ids": [2],
            "adds_bos": False,
            "added": {"2": {"content": "<|im_end|>", "special": True}},
        },
    )


def compare(spec: dict) -> None:
    divergence = 0.5 if MODE == "differs" else 0.001
    if "gguf" in spec["models"][1]:
        divergence = 0.5 if MODE == "gguf-differs" else 0.01
        assert Path(spec["models"][1]["gguf"]).read_text().startswith("GGUF")
    prompts = {"prompts": 14, "equal": 14, "unlike": None}
    if MODE == "other-prompt":
        prompts |= {"equal": 13, "unlike": "<|im_start|>user"}
    send(
        kind="compared",
        tokens=100,
        agreement=0.75 if MODE == "differs" else 1.0,
        divergence=divergence,
        effect=1.0,
        **(prompts if spec["tokenizer"] else {}),
    )


def main() -> None:
    spec = receive()
    if MODE.startswith("log:"):
        sys.stderr.write(Path(MODE.removeprefix("log:")).read_text())
        os._exit(1)
    match Path(sys.argv[1]).name:
        case "predict_rows.py":
            predict(spec)
        case "chat_with_model.py":
            chat()
        case "serve_model.py":
            prove()
            send(kind="ready")
        case "merge_adapter.py":
            merge(spec)
        case "compare_models.py":
            compare(spec)
        case "convert_gguf.py":
            Path(spec["file"]).write_text(f"GGUF {' '.join(spec['arguments'][-2:])}")
            send(kind="converted")
    send(kind="end")


if __name__ == "__main__":
    main()
