"""Checks of the modelling file inside the training interpreter: python traps.py MODELS REPORT

Each check_* function is one trap that has sprung before; REPORT gets {name: null or the traceback}.
"""

import importlib.util
import inspect
import json
import os
import sys
import traceback
import types
from pathlib import Path

import torch
import transformers
from torch import nn

FILE = Path(os.environ["IISFT_MODELING_FILE"])
MODELS = Path(sys.argv[1])
WRITTEN = []


def fresh_module():
    view = types.ModuleType("view_under_test")  # the file stands beside its companion, as in a view
    view.__path__ = [str(FILE.parent)]
    sys.modules[view.__name__] = view
    spec = importlib.util.spec_from_file_location("view_under_test.modeling_iisft", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    WRITTEN.clear()
    stopping = sys.modules["view_under_test.stopping_iisft"]
    stopping.os = Recorder()
    return module


def witness():
    return sys.modules["view_under_test.witness_iisft"]


class Recorder:
    """The module os, whose write is noted."""

    def __getattr__(self, name):
        return getattr(os, name)

    def write(self, descriptor, content):
        return record(descriptor, content)


def record(descriptor, content):
    WRITTEN.append((descriptor, content))
    return len(content)


def exact(name, arithmetic="float32", module=None):
    folder = MODELS / name / "model"
    config = transformers.AutoConfig.from_pretrained(folder)
    config.iisft_arithmetic = arithmetic
    config._attn_implementation = "eager"
    model_class = getattr(module or fresh_module(), config.architectures[0])
    return model_class.from_pretrained(folder, config=config, dtype=torch.bfloat16)


def stock(name):
    folder = MODELS / name / "model"
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def ids():
    return torch.arange(3, 40).reshape(1, -1)


def freeze(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def check_gemma_embedding_is_found_and_its_scale_is_not_rounded():
    for name in ("gemma2", "gemma3"):
        mine, theirs = exact(name).get_input_embeddings(), stock(name).get_input_embeddings()
        assert type(mine) is not type(theirs)
        assert mine(ids()).dtype == torch.float32
        assert torch.equal(mine(ids()), theirs(ids()))
        rounded = mine.weight[ids()].float() * torch.tensor(96**0.5).bfloat16().float()
        assert not torch.equal(mine(ids()), rounded), "the toy's scale would not show the trap"


def check_classes_keep_their_names_and_buffers_are_initialised():
    model = exact("gemma3")
    embedding = model.get_input_embeddings()
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert type(embedding).__name__ == "Gemma3TextScaledWordEmbedding"
    assert {type(m).__name__ for m in model.modules() if isinstance(m, nn.Linear)} == {"Linear"}
    assert abs(float(embedding.embed_scale) - 96**0.5) < 0.05


def check_layer_norm_takes_float32_activations():
    mine, theirs = exact("stablelm"), stock("stablelm")
    assert any(isinstance(m, nn.LayerNorm) for m in mine.modules())
    assert torch.equal(mine(ids()).logits, theirs(ids()).logits)


def check_trainable_layers_get_their_gradients():
    mine, theirs = freeze(exact("qwen2-untied")), freeze(stock("qwen2-untied"))
    for model in (mine, theirs):
        trained = (
            model.lm_head.weight,
            model.model.layers[0].self_attn.q_proj.bias,
            model.model.norm.weight,
        )
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train()
        model(input_ids=ids(), labels=ids()).loss.backward()
    found = [n for n, p in mine.named_parameters() if p.grad is not None]
    assert found == [
        "model.layers.0.self_attn.q_proj.bias",
        "model.norm.weight",
        "lm_head.weight",
    ], found
    for name in found:
        gradient = mine.get_parameter(name).grad
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, theirs.get_parameter(name).grad.to(torch.bfloat16)), name


def check_gradients_into_frozen_layers_are_those_of_float32_weights():
    grads = []
    for model in (exact("qwen2-untied"), stock("qwen2-untied")):
        embeds = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(3)).requires_grad_(
            True
        )
        freeze(model)(inputs_embeds=embeds).logits.square().sum().backward()
        grads.append(embeds.grad)
    assert torch.equal(*grads) and grads[0].abs().max() > 0


def check_the_float32_cast_is_not_kept_for_backward():
    model = freeze(exact("qwen2-untied"))
    shapes = {tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)}
    kept = []

    def pack(tensor):
        if (
            tensor.dtype == torch.float32
            and {tuple(tensor.shape), tuple(tensor.shape[::-1])} & shapes
        ):
            kept.append(tuple(tensor.shape))
        return tensor

    embeds = torch.randn(1, 9, 64).requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(inputs_embeds=embeds).logits.sum().backward()
    assert kept == [], kept


def check_experts_are_refused():
    try:
        exact("qwen3-moe")
    except NotImplementedError as error:
        assert "weights: fp32" in str(error)
    else:
        raise AssertionError("a model with experts was accepted")


def check_experts_keep_their_kernels_under_the_native_class():
    mine, theirs = exact("qwen3-moe", "native"), stock("qwen3-moe")
    assert theirs.config._experts_implementation == "grouped_mm", (
        "the stock class would not show the trap"
    )
    assert mine.config._experts_implementation == "grouped_mm"


def check_layers_with_a_forward_of_their_own_are_refused():
    module = fresh_module()
    for base, sizes in ((nn.Linear, (2, 2)), (nn.Embedding, (2, 2)), (nn.LayerNorm, (2,))):
        own = type("Own", (base,), {"forward": lambda self, x: x})
        try:
            module.make_exact(nn.Sequential(own(*sizes)))
        except NotImplementedError:
            continue
        raise AssertionError(f"{base.__name__} with its own forward was retyped")


def check_one_line_from_the_first_training_forward_only():
    model = exact("qwen3")
    with torch.no_grad():
        model(ids())
        model.train()
        model(ids())
        model.eval()
    model.generate(ids(), max_new_tokens=2, do_sample=False)
    model(ids())
    assert WRITTEN == []
    model.train()
    hooks = count_hooks(model)
    model(ids())
    model(ids())
    assert len(WRITTEN) == 1 and hooks == 2 and count_hooks(model) == 0
    descriptor, line = WRITTEN[0]
    assert descriptor == 1 and len(line) < 4096
    assert (
        line.startswith(b"\niisft-observed {") and line.endswith(b"}\n") and line.count(b"\n") == 2
    )


def count_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def check_a_failed_forward_leaves_the_next_one_to_prove():
    model = exact("qwen3").train()
    norm, model.model.norm = model.model.norm, nn.Linear(1, 1)
    try:
        model(ids())
    except RuntimeError:
        model.model.norm = norm
    else:
        raise AssertionError("the broken model ran")
    model.eval()
    model(ids())
    assert WRITTEN == []
    model.train()
    model(ids())
    assert len(WRITTEN) == 1 and count_hooks(model) == 0


def check_no_attention_is_said_and_not_invented():
    model = exact("qwen3").train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model(ids())
    observed = json.loads(WRITTEN[0][1].decode().split(" ", 1)[1])
    assert observed["linear_dtype"] is None and observed["attention_dtype"] is None
    assert observed["weights"] == {}


def check_closed_stdout_does_not_end_the_run():
    module = fresh_module()
    model = exact("qwen3", module=module).train()

    def nobody(descriptor, content):
        raise BrokenPipeError(32, "Broken pipe")

    sys.modules["view_under_test.stopping_iisft"].os.write = nobody
    assert model(ids()).logits.isfinite().all()


def check_four_bit_weights_count_as_what_they_stand_for():
    fresh_module()

    class Params4bit(nn.Parameter):
        pass

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            packed = torch.zeros(12, 1, dtype=torch.uint8)
            self.weight = Params4bit(packed, requires_grad=False)
            self.other = Params4bit(packed.clone(), requires_grad=False)
            self.other.quant_state = type("State", (), {"shape": torch.Size([23])})
            self.norm = nn.Parameter(torch.zeros(5, dtype=torch.float16), requires_grad=False)
            self.lora_A = nn.Parameter(torch.zeros(7), requires_grad=False)

    assert witness().count_weights(Layer()) == {"nf4": 24 + 23, "float16": 5}


def check_a_quantized_layer_says_what_it_multiplies_in():
    model = exact("qwen3").train()
    freeze(model).model.layers[0].self_attn.q_proj.compute_dtype = torch.float16
    model(inputs_embeds=torch.randn(1, 4, 64).requires_grad_(True))
    assert b'"linear_dtype": "float16"' in WRITTEN[0][1]


def check_tf32_is_seen_through_either_setting():
    fresh_module()
    assert witness()._matmul_precision() == "highest"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert witness()._matmul_precision() == "high"


def check_configuration_and_class_must_fit():
    module = fresh_module()
    llama = transformers.AutoConfig.from_pretrained(MODELS / "llama-tied" / "model")
    llama.iisft_arithmetic = "native"
    mixed = transformers.AutoConfig.from_pretrained(MODELS / "qwen3" / "model")
    for config in (llama, mixed):
        try:
            module.Qwen3ForCausalLM(config)
        except ValueError as error:
            assert "config.json" in str(error)
        else:
            raise AssertionError("an unfit configuration was accepted")


def check_names_that_are_no_class_raise_attribute_error():
    module = fresh_module()
    for name in ("__transformers_module_hash__", "NoSuchForCausalLM"):
        assert getattr(module, name, None) is None


def check_forward_keeps_its_signature():
    mine, theirs = exact("qwen2-tied"), stock("qwen2-tied")
    assert inspect.signature(mine.forward) == inspect.signature(theirs.forward)


def check_generation_is_that_of_float32_weights():
    for name in ("qwen2-tied", "gemma3"):
        made = [
            m.generate(ids(), max_new_tokens=8, do_sample=False) for m in (exact(name), stock(name))
        ]
        assert torch.equal(*made)


def main():
    report = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                report[name] = None
            except Exception:
                report[name] = traceback.format_exc()
    Path(sys.argv[2]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
