"""Run LLaMA-Factory's own tokenisation of a training set and save it, without loading any weights.

Runs in the training interpreter: python tokenize_rows.py ARGUMENTS.json
The arguments are those of a training; tokenized_path says where the tokens go.
"""

import json
import sys
from pathlib import Path

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer


def main(arguments: Path) -> None:
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(
        json.loads(arguments.read_text(encoding="utf-8"))
    )
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    get_dataset(
        template,
        model_args,
        data_args,
        training_args,
        stage=finetuning_args.stage,
        **tokenizer_module,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
