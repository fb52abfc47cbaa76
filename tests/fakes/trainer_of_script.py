"""A stand-in for llamafactory-cli below a written script: reports what was asked, but for the fact
that FAKE_WRONG names.
"""

import json
import os
from pathlib import Path

asked = json.loads(Path("check/asked.json").read_text())
expected, word, wrong = asked["expected"], os.environ["IISFT_PROOF"], os.environ.get("FAKE_WRONG")
node = int(os.environ.get("NODE_RANK", "0"))
print("noise", flush=True)
if wrong == "silent":
    raise SystemExit(0)
for rank in range(node * asked["ranks"], (node + 1) * asked["ranks"]):
    proof = {
        "rank": rank,
        "world_size": expected["world_size"] + (wrong == "world"),
        "arithmetic": expected["arithmetic"],
        "weights": {"float16" if wrong == "weights" else expected["weights_dtype"]: 91456},
        "autocast": expected["autocast"],
        "attention": "sdpa" if wrong == "attention" else expected["attention"],
        "attention_dtype": expected["compute_dtype"],
        "linear_dtype": "bfloat16" if wrong == "linear" else expected["compute_dtype"],
        "loaded": {"missing": [0], "unexpected": [0], "mismatched": [0]},
        "products": {expected["compute_dtype"]: 9},
        "kernels": {expected["attention"]: 2},
        "float32_matmul_precision": "high" if wrong == "tf32" else "highest",
    }
    print(f"iisft-observed {word} {json.dumps(proof)}")
if node == 0:
    rows = expected["rows"] - (wrong == "rows")
    batch = expected["global_batch"] * (2 if wrong == "batch" else 1)
    for message in (
        "***** Running training *****",
        f"  Num examples = {rows:,}",
        f"  Total train batch size (w. parallel, distributed & accumulation) = {batch:,}",
    ):
        print(f"iisft-said {word} {json.dumps({'log': message})}")
