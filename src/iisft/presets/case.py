"""What a preset's rules look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from iisft.presets.documents import Document
from iisft.presets.schema import Preset


@dataclass(frozen=True)
class Case:
    """A preset and what is known of where it will run; the doctor's case knows the machine too.

    Args:
        preset: what will run.
        ranks: how many processes on this machine; 0 = one for each GPU.
        on_cpu: no GPU takes part.
        model: the model's config.json, {} when it isn't there.
        nodes: how many machines take part.
        document: where the preset's values were written.
    """

    preset: Preset | None = None
    ranks: int = 0
    on_cpu: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    nodes: int = 1
    document: Document | None = None

    @property
    def looked_at(self) -> bool:
        """Whether a machine was looked at."""
        return False

    @cached_property
    def archs(self) -> list[str]:
        """The architectures of the GPUs that are here, each once; none without a machine."""
        return []

    @property
    def packages(self) -> Mapping[str, str]:
        """Versions in the training interpreter."""
        return {}

    @property
    def measured_bf16(self) -> str:
        """What was measured of bf16 on the first GPU."""
        return ""

    @property
    def model_type(self) -> str:
        """The model's family.

        Before its folder is read, id and template name it: qwen2 for the template qwen.
        """
        if known := self.model.get("model_type"):
            return str(known)
        if self.preset is None:
            return ""
        template = "qwen2" if self.preset.model.template == "qwen" else ""
        hint = f"{self.preset.model.id} {template}".lower().replace("qwen-2", "qwen2")
        return "qwen2" if "qwen2" in hint else ""

    def world_size(self, preset: Preset) -> int:
        return (self.ranks or max(preset.hardware.gpus, 1)) * self.nodes

    def argument(self, name: str) -> Any:
        """A LLaMA-Factory argument of the preset's free section."""
        return self.preset.llamafactory.get(name) if self.preset else None

    def place(self, key: str) -> str:
        """Where the preset says this."""
        if self.document is None:
            return key
        return f"{self.document.source(tuple(key.split('.'))).text} ({key})"
