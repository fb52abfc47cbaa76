"""The proof of a run that iisft does not watch: compares a trainer's log with what was asked.

Runs in the training interpreter, from a folder of the run that also holds proof.py and
constants_iisft.py: python check_proof.py LOG ASKED.json NODE_RANK. ASKED.json is {"expected":
fields of Expected, "ranks": of each node, "begins": the line after which the trainer sums up,
"summary": {name: pattern}}. Ends with 1 and one sentence per difference.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from constants_iisft import PROOF_MARK, PROOF_VARIABLE, SAID_MARK
from proof import Expected, Observed, differences


def observed(log: Path, word: str, begins: str, summary: dict[str, str]) -> Observed:
    """What the ranks of this node and the trainer said behind this run's word."""
    proofs: dict[int, dict[str, Any]] = {}
    found: dict[str, int] = {}
    begun = False
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        mark, _, rest = line.partition(f" {word} ")
        if mark == PROOF_MARK:
            proof = json.loads(rest)
            proofs[proof["rank"]] = proof
        elif mark == SAID_MARK:
            message = str(json.loads(rest).get("log", ""))
            begun = begun or begins in message
            for name, pattern in summary.items():
                if begun and name not in found and (match := re.search(pattern, message)):
                    found[name] = int(match[1].replace(",", ""))
    return Observed(proofs, found)


def main(log: str, asked_file: str, node_rank: str) -> None:
    asked = json.loads(Path(asked_file).read_text(encoding="utf-8"))
    word = os.environ[PROOF_VARIABLE]
    found = differences(
        Expected(**asked["expected"]),
        observed(Path(log), word, asked["begins"], asked["summary"]),
        asked["ranks"],
        is_first_node=node_rank == "0",
    )
    if found:
        sys.exit(f"not proven: this run is not what its preset says: {'; '.join(found)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
