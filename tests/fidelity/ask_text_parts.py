"""Compares text models with the whole models that they are a part of, and writes merged ones back.
Runs in the training interpreter:

python ask_text_parts.py REQUEST, a JSON file with a list of {"name", "model", "view", "adapter",
"part" (child/text_part_weights.py), "target"}. One JSON object per line of the answer.
"""

import json
import sys
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

sys.path.insert(0, str(Path(__file__).parents[2] / "src" / "iisft" / "child"))
import text_part_weights

IDS = torch.randint(0, 256, (2, 80), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def tensors(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def compare(one):
    whole = AutoModelForImageTextToText.from_pretrained(one["model"], dtype=torch.float32)
    part, report = AutoModelForCausalLM.from_pretrained(
        one["view"], trust_remote_code=True, output_loading_info=True
    )
    answer = {
        "name": one["name"],
        "report": {key: len(found) for key, found in report.items()},
        "same": torch.equal(logits(whole), logits(part)),
    }
    stock = text_part_weights.load(one, torch.bfloat16)
    merged = peft.PeftModel.from_pretrained(stock, one["adapter"]).merge_and_unload()
    target = Path(one["target"])
    target.mkdir(parents=True)
    text_part_weights.save(one, merged.to(torch.bfloat16))
    (target / "config.json").write_bytes((Path(one["model"]) / "config.json").read_bytes())
    ours = merged.state_dict()
    again = text_part_weights.load({**one, "model": one["target"]}, torch.bfloat16)
    theirs = again.state_dict()
    exported, found = AutoModelForImageTextToText.from_pretrained(target, output_loading_info=True)
    after = logits(exported)
    old, new = tensors(Path(one["model"])), tensors(target)
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    return answer | {
        "exported": [len(found[key]) for key in ("missing_keys", "unexpected_keys")],
        "class": type(exported).__name__,
        "as merged": ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
        and torch.equal(after, logits(again)),
        "dtypes": all(old[name].dtype == new[name].dtype for name in old),
        "names": sorted(old) == sorted(new),
        "changed": sorted({name.split(".layers.")[0] for name in changed}),
    }


for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    print(json.dumps(compare(one)), flush=True)
