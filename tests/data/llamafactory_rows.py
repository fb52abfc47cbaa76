"""In the training interpreter: the rows that the real LLaMA-Factory loads from staged folders.

python llamafactory_rows.py CACHE ANSWERS.json FOLDER...; dataset_info.json in each folder has one
dataset. For each row the answer has role and content of every turn, the last answer among them,
then system and tools.
"""

import json
import os
import sys
from pathlib import Path

cache, answers_file, *folders = sys.argv[1:]
os.environ["HF_DATASETS_CACHE"] = cache

from llamafactory.data.loader import _load_single_dataset  # noqa: E402
from llamafactory.data.parser import get_dataset_list  # noqa: E402
from llamafactory.hparams import DataArguments, ModelArguments  # noqa: E402
from transformers import Seq2SeqTrainingArguments  # noqa: E402

answers = []
for folder in folders:
    (name,) = json.loads((Path(folder) / "dataset_info.json").read_text())
    (attributes,) = get_dataset_list([name], folder)
    rows = _load_single_dataset(
        attributes,
        ModelArguments(model_name_or_path="none"),
        DataArguments(dataset_dir=folder),
        Seq2SeqTrainingArguments(output_dir=cache, use_cpu=True, report_to=[]),
    )
    answers.append(
        [
            [
                [[turn["role"], turn["content"]] for turn in row["_prompt"] + row["_response"]],
                row["_system"],
                row["_tools"],
            ]
            for row in rows
        ]
    )
Path(answers_file).write_text(json.dumps(answers), encoding="utf-8")
