"""The proof that a run does what its preset says: what the trainer reported against what
was asked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

# Of the base parameters, the share that may be in another dtype: norms that were asked to be
# upcast.
_OTHER_DTYPE_SHARE = 0.01
# nf4 leaves embeddings and head as they are: 14 % of Qwen2.5-7B, about half of the smallest models.
_NF4_SHARE = 0.3
_WIDE = "float32"
_BLOCKS = "eager_blocks"  # child/attention_iisft.py; this file stands alone beside check_proof.py


@dataclass(frozen=True, slots=True)
class Expected:
    """What every rank must report. `rows` is None where the trainer packs or splits them itself,
    `adapted` (modules with an adapter, by name) where the model was not built before the start,
    `adapter` (a digest of the loaded matrices) where they are fresh, `cards` (variables, and the
    buses of what they choose) where nobody gave it GPUs.
    """

    weights_dtype: str
    compute_dtype: str
    autocast: str | None
    attention: str
    arithmetic: str
    world_size: int
    global_batch: int
    rows: int | None
    adapted: dict[str, int] | None = None
    layers_kept: int = 0
    packed: bool = False
    adapter: str | None = None
    cards: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def is_whole(cls, values: Mapping[str, Any]) -> bool:
        """Whether run.json's `expected` has all that every iisft has written."""
        return {one.name for one in fields(cls) if one.default is MISSING} <= values.keys()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Expected":
        """Run.json's `expected`, which is whole; what else it holds is a later iisft's."""
        return cls(**{name: values[name] for name in cls.__slots__ if name in values})


@dataclass(frozen=True, slots=True)
class Observed:
    """Reports of the ranks of this node, and the trainer's own summary (only rank 0 prints one).

    `tokens`: how the first batch compares with the token account; `repeated`: rows that each epoch
    trains twice.
    """

    proofs: Mapping[int, Mapping[str, Any]]
    summary: Mapping[str, int]
    tokens: str = ""
    repeated: int = 0

    def as_json(self) -> dict[str, Any]:
        """The `observed` object of run.json; null where nothing was reported."""
        first: Mapping[str, Any] = next(iter(self.proofs.values()), {})
        return {
            "weights_dtype": weights_dtype(first),
            "compute_dtype": compute_dtype(first),
            "attention": first.get("attention"),
            "world_size": first.get("world_size"),
            "global_batch": self.summary.get("global_batch"),
            "rows": self.summary.get("rows"),
            "rows_repeated": self.repeated,
            "tokens": self.tokens or None,
            "trainable_parameters": self.summary.get("trainable_parameters")
            or first.get("trainable_parameters"),
            "autocast": first.get("autocast"),
            "arithmetic": first.get("arithmetic"),
            "class": first.get("class"),
            "loaded": first.get("loaded"),
            "adapted": first.get("adapted"),
            "adapter": first.get("adapter"),
            "products": first.get("products"),
            "first_batch": _without_rows(first.get("first_batch")),
            "reach": first.get("reach"),
            "device": first.get("device"),
            "cards": first.get("cards"),
            "layers_kept": first.get("layers_kept"),
            "packed": first.get("packed"),
            "logit_positions": first.get("logit_positions"),
        }


def _without_rows(batch: Any) -> Any:
    return {k: v for k, v in batch.items() if k != "rows"} if isinstance(batch, dict) else batch


def weights_dtype(proof: Mapping[str, Any]) -> str | None:
    """The dtype of the base weights: nf4 when the linears are, else that of most parameters."""
    counts = proof.get("weights") or {}
    total = sum(counts.values())
    if counts.get("nf4", 0) > _NF4_SHARE * total:
        return "nf4"
    return max(counts, key=lambda name: counts[name]) if counts else None


def compute_dtype(proof: Mapping[str, Any]) -> str | None:
    """The dtype in which a linear and an attention answered; both names when they differ."""
    linear, attention = proof.get("linear_dtype"), proof.get("attention_dtype")
    return linear if linear == attention else f"{linear} and {attention}"


def differences(
    expected: Expected,
    observed: Observed,
    local_ranks: int,
    *,
    is_first_node: bool,
    complete: bool = True,
) -> list[str]:
    """Each line of the preset that the run does not hold, as a sentence.

    A missing report is a difference too, unless more may come: `complete` is false.
    """
    found = []
    missing = local_ranks - len(observed.proofs)
    if complete and missing > 0:
        found.append(
            f"{missing} of {local_ranks} ranks did not report their precision: "
            "the model class that proves it was not used"
        )
    for rank, proof in sorted(observed.proofs.items()):
        found += [f"rank {rank}: {sentence}" for sentence in _rank_differences(expected, proof)]
    if is_first_node:
        unsaid = {} if complete else {"global_batch": expected.global_batch, "rows": expected.rows}
        found += list(_summary_differences(expected, {**unsaid, **observed.summary}))
    return found


def _rank_differences(expected: Expected, proof: Mapping[str, Any]) -> Iterator[str]:
    yield from precision_differences(expected, proof)
    yield from _weight_differences(proof)
    yield from _product_differences(expected, proof)
    if expected.adapted is not None and proof.get("adapted") != expected.adapted:
        yield (
            f"adapters on {_modules(proof.get('adapted'))}, but the preset says "
            f"{_modules(expected.adapted)}"
        )
    if expected.adapter is not None and (seen := proof.get("adapter")) != expected.adapter:
        yield f"the loaded adapter has the digest {_said(seen)}, its file {expected.adapter}"
    if (seen := proof.get("world_size")) != expected.world_size:
        yield f"world size {_said(seen)}, but the preset says {_said(expected.world_size)}"
    if expected.cards is not None:
        yield from _card_differences(expected.cards, proof.get("cards"))
    if expected.packed:
        yield from packing_differences(proof.get("packed") or {})
    if (kept := proof.get("layers_kept") or 0) != expected.layers_kept:
        yield f"{kept} layers keep their products, but the run says {expected.layers_kept}"


def _card_differences(given: Mapping[str, Any], seen: Any) -> Iterator[str]:
    """Two runs on one machine: each must see the GPUs that it was given, and no other."""
    if not isinstance(seen, Mapping):
        yield f"GPUs {_said(None)}, but the queue gave it {len(given['buses'])}"
        return
    for name, value in given["variables"].items():
        if (found := (seen.get("variables") or {}).get(name)) != value:
            yield f"{name} {found or 'unset'}, but the queue gave it {value or 'none'}"
    buses = list(seen.get("buses") or [])
    known = all(buses) and all(given["buses"])
    if len(buses) != len(given["buses"]) or (known and sorted(buses) != sorted(given["buses"])):
        yield f"it sees the GPUs {buses}, but the queue gave it {list(given['buses'])}"


def packing_differences(packed: Mapping[str, Any]) -> Iterator[str]:
    """What the first attention's mask and the positions say of the rows packed into one."""
    if not packed.get("rows"):
        yield "rows are not packed with positions and a mask of their own"
        return
    if packed.get("across"):
        yield f"{packed['across']} pairs of tokens of different packed rows see each other"
    if packed.get("hidden"):
        yield f"{packed['hidden']} pairs of tokens of the same packed row do not see each other"
    if not packed.get("restart"):
        yield "positions do not start again with each packed row"


def _weight_differences(proof: Mapping[str, Any]) -> Iterator[str]:
    """transformers fills what it misses with random numbers, and only warns."""
    loaded = proof.get("loaded")
    if loaded is None:
        yield "the weights do not come from the model's files"
        return
    said = {
        "missing": "tensors were in no file and are random",
        "unexpected": "tensors of the files were left out",
        "mismatched": "tensors had another shape in the files and are random",
    }
    for kind, sentence in said.items():
        count, *names = loaded.get(kind, [0])
        if count:
            more = ", ..." if count > len(names) else ""
            yield f"{count} {sentence} ({', '.join(map(str, names))}{more})"


def _product_differences(expected: Expected, proof: Mapping[str, Any]) -> Iterator[str]:
    """Every product of the first forward, whatever class it stands in: float32 (adapters, rotary
    angles) may be among narrower ones, and nothing else.
    """
    products = proof.get("products") or {}
    odd = {kind: n for kind, n in products.items() if kind not in (expected.compute_dtype, _WIDE)}
    if not products:
        yield "no product of the first forward was seen"
    elif odd:
        yield f"products of the first forward in {_modules(odd)}, not {expected.compute_dtype}"
    kernels = proof.get("kernels") or {}
    for name in ("sdpa", "eager", _BLOCKS):
        if kernels.get(name) and expected.attention != name:
            yield f"{kernels[name]} layers computed {name} attention, not {expected.attention}"
    if expected.attention == _BLOCKS and not kernels.get(_BLOCKS):
        yield f"no layer computed {_BLOCKS} attention"
    if proof.get("left_out"):
        yield f"{_BLOCKS} attention leaves out keys that the model's mask lets through"
    if proof.get("softcap") and expected.attention in kernels and not proof.get("capped"):
        yield f"the model's attention cap of {proof['softcap']} was left out"
    yield from _reach_differences(proof.get("reach") or {})


def _reach_differences(reach: Mapping[str, Any]) -> Iterator[str]:
    """Attention that looks further back than the config's sliding window, less far, or ahead."""
    tokens = reach.get("tokens", 0)
    for window, seen, later, layers in reach.get("layers", []):
        wanted = min(tokens, window or tokens)
        if seen != wanted:
            yield (
                f"{layers} attention layers look back at {seen} of a row's {tokens} tokens, not at "
                f"{wanted} (sliding_window {window})"
            )
        if later:
            yield f"{layers} attention layers look at later tokens"


def _modules(counts: Any) -> str:
    if not isinstance(counts, Mapping) or not counts:
        return "nothing"
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def precision_differences(expected: Expected, proof: Mapping[str, Any]) -> Iterator[str]:
    """What one process computes in otherwise than the preset says, while training or afterwards."""
    facts = {
        "base weights": (weights_dtype(proof), expected.weights_dtype),
        "arithmetic": (compute_dtype(proof), expected.compute_dtype),
        "autocast": (proof.get("autocast"), expected.autocast),
        "attention": (proof.get("attention"), expected.attention),
        "products": (proof.get("arithmetic"), expected.arithmetic),
    }
    for name, (seen, wanted) in facts.items():
        if seen != wanted:
            yield f"{name} {_said(seen)}, but the preset says {_said(wanted)}"
    counts = proof.get("weights") or {}
    other = sum(count for dtype, count in counts.items() if dtype != expected.weights_dtype)
    if expected.weights_dtype != "nf4" and other > _OTHER_DTYPE_SHARE * sum(counts.values()):
        yield f"{other:,} base parameters are not {expected.weights_dtype}: {dict(counts)}"
    if expected.compute_dtype == "float32" and proof.get("float32_matmul_precision") not in (
        None,
        "highest",
    ):
        yield f"float32 products run at reduced precision ({proof.get('float32_matmul_precision')})"


def _summary_differences(expected: Expected, summary: Mapping[str, int | None]) -> Iterator[str]:
    if summary.get("global_batch") != expected.global_batch:
        yield (
            f"global batch {_said(summary.get('global_batch'))}, but the preset says "
            f"{expected.global_batch}"
        )
    rows = summary.get("rows")
    if expected.rows is not None and rows != expected.rows:
        dropped = (
            f": {expected.rows - rows} rows were dropped"
            if rows is not None and rows < expected.rows
            else ""
        )
        yield f"the trainer has {_said(rows)} rows, but {expected.rows} were staged{dropped}"


def _said(value: Any) -> str:
    return "not reported" if value is None else str(value)
