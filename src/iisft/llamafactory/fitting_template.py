"""Which of LLaMA-Factory's chat templates fits a model: by what its own chat template writes around
a turn.

Source: the slots of LLaMA-Factory 0.9.5's data/template.py. Only clear cases are answered.
"""

# model_type of config.json -> (marker in the model's own chat template, LLaMA-Factory's name),
# first match wins. Families that share a model_type are told apart by their markers.
_BY_TYPE: dict[str, tuple[tuple[str, str], ...]] = {
    "qwen2": (("<｜Assistant｜>", "deepseekr1"), ("<|im_start|>", "qwen")),
    "qwen3": (
        ("<｜Assistant｜>", "deepseekr1"),
        ("<think>", "qwen3"),
        ("<|im_start|>", "qwen3_nothink"),
    ),
    "llama": (
        ("<｜Assistant｜>", "deepseekr1"),
        ("<|start_header_id|>", "llama3"),
        ("<<SYS>>", "llama2"),
    ),
    "mistral": (
        ("<|im_start|>", "chatml"),
        ("<|user|>", "zephyr"),
        ("[SYSTEM_PROMPT]", "mistral_small"),
        ("[INST] ", "mistral"),
    ),
    "mixtral": (("[INST] ", "mistral"),),
    "gemma": (("<start_of_turn>", "gemma"),),
    "gemma2": (("<start_of_turn>", "gemma2"),),
    "gemma3_text": (("<start_of_turn>", "gemma3"),),
    "glm": (("<|user|>", "glm4"),),
    "glm4": (("<|user|>", "glm4"),),
    "phi3": (("<|im_sep|>", "phi4"), ("<|end|>", "phi")),
    "internlm2": (("<|im_start|>", "intern2"),),
    "granite": (("<|start_of_role|>", "granite3"),),
}


def template_for(model_type: str, chat_template: str) -> str | None:
    """LLaMA-Factory's template for a model; None when nothing clearly fits."""
    for marker, name in _BY_TYPE.get(model_type, ()):
        if marker in chat_template:
            return name
    return None


def known_templates() -> frozenset[str]:
    """Every name that template_for can give."""
    return frozenset(name for pairs in _BY_TYPE.values() for _, name in pairs)
