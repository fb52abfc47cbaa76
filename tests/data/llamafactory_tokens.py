"""In the training interpreter: what the real LLaMA-Factory makes of rows.

python llamafactory_tokens.py JOBS.json ANSWERS.json

A job is {model, template, options, cutoffs, rows, dataset_dir}: rows as they lie in a file;
dataset_info.json in dataset_dir calls them "rows". Its answer has for each row the ids of every
question and answer uncut, and for each cutoff the ids and labels that would be trained on.
"""

import json
import sys
from pathlib import Path

from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.mm_plugin import get_mm_plugin
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
from llamafactory.data.template import TEMPLATES, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer


def main(jobs_file: Path, answers_file: Path) -> None:
    answers = []
    for job in json.loads(jobs_file.read_text(encoding="utf-8")):
        untouched = vars(TEMPLATES[job["template"]]).copy()
        # rows without images are rendered alike, but other plugins ask for a processor first
        TEMPLATES[job["template"]].mm_plugin = get_mm_plugin("base")
        tokenizer = load_tokenizer(ModelArguments(model_name_or_path=job["model"]))["tokenizer"]
        arguments = DataArguments(
            template=job["template"], dataset_dir=job["dataset_dir"], **job["options"]
        )
        template = get_template_and_fix_tokenizer(tokenizer, arguments)
        (attributes,) = get_dataset_list(["rows"], job["dataset_dir"])
        convert = get_dataset_converter(attributes.formatting, attributes, arguments)
        answers.append(
            [
                _answer(convert(row), template, tokenizer, arguments, job["cutoffs"])
                for row in job["rows"]
            ]
        )
        vars(TEMPLATES[job["template"]]).update(untouched)
    answers_file.write_text(json.dumps(answers), encoding="utf-8")


def _answer(example, template, tokenizer, arguments, cutoffs):
    messages = example["_prompt"] + example["_response"]
    discarding = arguments.mask_history and not template.preserve_thinking
    pairs = template.encode_multiturn(
        tokenizer, messages, example["_system"], example["_tools"], discarding
    )
    trained = []
    for cutoff in cutoffs:
        arguments.cutoff_len = cutoff
        processor = SupervisedDatasetProcessor(template, tokenizer, None, arguments)
        trained.append(
            processor._encode_data_example(
                example["_prompt"],
                example["_response"],
                example["_system"],
                example["_tools"],
                [],
                [],
                [],
            )
        )
    return {"pairs": pairs, "trained": trained}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
