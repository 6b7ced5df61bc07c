"""What a cell of the architecture matrix is: a family, an axis and a share, how it is cut, and when it is good.

The models are random and small, with enough layers, heads and channels that each share can be met within two points;
norms, biases and weights are drawn so that every one of them matters. One axis at a time is cut:

- `hidden`: channels of the residual stream, a share of all linear weights of the decoder; GPT-2's heads go with them,
  since its config has no head size;
- `heads`: whole KV groups with their query heads, a share of q, k, v and o; where all heads share one key and value
  (MQA), query heads, a share of q and o;
- `ff`: a share of the MLP's matrices;
- `depth`: whole layers, a share of all linear weights.

The share is counted on the tensors themselves. Each cut model is saved, and one new process, which knows nothing of
this project, loads all of them with stock ``AutoModelForCausalLM``. ``test_pruning_matrix.py`` takes a sample,
``benchmarks/pruning_matrix.py`` all of it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

AXES: Final = ("hidden", "heads", "ff", "depth")
SHARES: Final = (0.10, 0.25, 0.50)

#: What went may differ so much from what was asked, a logit of the loaded model so much from that of the cut one.
WITHIN: Final = 0.02
LOGITS_WITHIN: Final = 1e-5

VOCAB: Final = 96
NEW_TOKENS: Final = 16

#: Run by a process of its own: loads each model of a folder and compares with what was stored beside it.
STOCK: Final = """
import sys, pathlib, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    wanted = torch.load(folder / "wanted.pt")
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model.eval()
    with torch.no_grad():
        apart = float((model(wanted["ids"]).logits - wanted["logits"]).abs().max())
    text = model.generate(wanted["ids"][:1, :8], max_new_tokens=wanted["text"].shape[1] - 8, do_sample=False)
    alike = torch.equal(text, wanted["text"])
    clean = not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    print(folder.name, apart, int(alike), int(clean), type(model).__name__, flush=True)
"""

SLIDING: Final = ["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Family:
    """A stock config class with what sets it apart; sizes come from the axis."""

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    #: "gqa", "mha" or "mqa": how query heads share keys and values.
    sharing: str = "gqa"
    alternating: bool = False


FAMILIES: Final = {
    "llama-mha": Family("LlamaConfig", sharing="mha"),
    "llama-gqa": Family("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-mqa": Family("LlamaConfig", sharing="mqa"),
    "llama-tied": Family("LlamaConfig", {"tie_word_embeddings": True}),
    "mistral": Family("MistralConfig", {"sliding_window": 9}),
    "qwen2": Family("Qwen2Config", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": Family("Qwen3Config", {"tie_word_embeddings": True}),
    "gemma2": Family("Gemma2Config", {"sliding_window": 9, "query_pre_attn_scalar": 5, "final_logit_softcapping": 4.0,
                                      "attn_logit_softcapping": 3.0}),
    "gemma3": Family("Gemma3TextConfig", {"sliding_window": 9, "query_pre_attn_scalar": 5}, alternating=True),
    "phi3": Family("Phi3Config", {"sliding_window": 9, "pad_token_id": 1}),
    "gpt2": Family("GPT2Config", {"activation_function": "gelu_new"}, sharing="mha"),
}  # fmt: skip


#: Cells that have to be refused: family and axis → what the message says, beside the nearest legal sizes. Any other
#: refusal is a failure, and so is a cut where one is stated.
REFUSALS: Final = {
    # Its heads fill the hidden size: stock GPT-2 derives the head size from both, so that heads alone cannot go.
    ("gpt2", "heads"): "gpt2 has no head size in its config: heads and hidden size are cut together",
}


@dataclass
class Cell:
    """One cut: what went, or why it was refused; ``apart``, ``alike`` and ``clean`` are the new process's.

    :param apart: largest difference of a logit; ``alike``: whether a prompt is continued greedily alike; ``clean``:
        whether no tensor was missing, left over or of another shape.
    """

    family: str
    axis: str
    asked: float
    removed: float = 0.0
    refused: str = ""
    apart: float = float("nan")
    alike: bool = False
    clean: bool = False

    @property
    def name(self) -> str:
        """Folder of the model."""
        return f"{self.family}-{self.axis}-{round(self.asked * 100)}"

    @property
    def good(self) -> bool:
        """Whether the cell is as it must be: cut as asked, or refused where that is stated, for the stated reason."""
        reason = REFUSALS.get((self.family, self.axis))
        if reason is not None:
            return reason in self.refused and "the nearest: " in self.refused
        near = abs(self.removed - self.asked) <= WITHIN + 1e-9
        return not self.refused and near and self.apart <= LOGITS_WITHIN and self.alike and self.clean


def make_model(name: str, axis: str) -> Any:
    """A random model of a family, of sizes from which each share of the axis can be taken."""
    import torch
    import transformers

    family = FAMILIES[name]
    # hidden 360 is a multiple of 40, 36, 30 and 20 heads; 160, 144, 120 and 80 are multiples of 4.
    wide = axis == "heads"
    heads, groups = {"mha": (20, 20), "gqa": (40, 20), "mqa": (20, 1)}[family.sharing] if wide else (4, 2)
    hidden, head_dim = (360, 4) if wide else (160, 8)
    if family.sharing != "gqa" and not wide:
        groups = {"mha": heads, "mqa": 1}[family.sharing]
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": hidden, "intermediate_size": 160,
        "num_hidden_layers": {"depth": 20}.get(axis, 2), "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": head_dim, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    if family.config == "GPT2Config":
        del sizes["head_dim"], sizes["num_key_value_heads"]
        sizes |= {"n_inner": sizes.pop("intermediate_size"), "hidden_size": 160, "num_attention_heads": 20}
    if family.alternating:
        sizes["layer_types"] = SLIDING * (sizes["num_hidden_layers"] // 2)
    torch.manual_seed(0)
    config = getattr(transformers, family.config)(**(sizes | family.settings))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    return model


def target(before: Any, axis: str, share: float) -> Any:
    """The sizes of a cut along one axis, nearest to the share."""
    from apt.plugins.optional.pruning.decoder.sizes import removed_share
    from apt.plugins.optional.pruning.structure.legality import hidden_sizes, with_hidden

    left = 1.0 - share
    if axis == "hidden":
        options = [with_hidden(before, hidden) for hidden in hidden_sizes(before)]
        return min(options, key=lambda sizes: abs(removed_share(before, sizes) - share))
    if axis == "heads":
        which = "kv_groups" if before.kv_groups > 1 else "heads_per_group"
        return replace(before, **{which: round(getattr(before, which) * left)})
    if axis == "ff":
        return replace(before, ff=round(before.ff * left / 8) * 8)
    return replace(before, layers=round(before.layers * left))


def counted(model: Any, architecture: Any, axis: str, *, mqa: bool) -> int:
    """Weights that the axis's share is counted on."""
    roles = {"heads": ("q", "o") if mqa else ("q", "k", "v", "qkv", "o"), "ff": ("gate", "up", "gate_up", "down")}
    wanted = roles.get(axis, roles["ff"] + ("q", "k", "v", "qkv", "o"))
    return sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and architecture.role_of(n) in wanted)


def cut_cells(name: str, axis: str, shares: Sequence[float], folder: Path) -> Iterator[Cell]:
    """Cut a family along an axis and save the models."""
    import torch

    from apt.checkpoint.architecture import descriptor
    from apt.console.errors import UnsupportedError
    from apt.evaluation.texts import rows_from_ids
    from apt.plugins.optional.pruning.decoder.blocks import sizes_of
    from apt.plugins.optional.pruning.structure.cut_to_sizes import cut_to

    model = make_model(name, axis)
    config = model.config.to_dict()
    architecture = descriptor(config, where=name)
    before = sizes_of(architecture, config)
    ids = torch.randint(2, VOCAB, (4, 32), generator=torch.Generator().manual_seed(1))
    dense = counted(model, architecture, axis, mqa=before.kv_groups == 1)
    for share in shares:
        cell = Cell(name, axis, share)
        dropped = None if axis != "depth" else spread(before.layers, round(before.layers * share))
        try:
            made = cut_to(model, architecture, target(before, axis, share), rows_from_ids(ids, source="random"),
                          dropped=dropped).model  # fmt: skip
        except UnsupportedError as error:
            cell.refused = str(error)
        else:
            cell.removed = 1.0 - counted(made, architecture, axis, mqa=before.kv_groups == 1) / dense
            store(made, ids, folder / cell.name)
        yield cell


def spread(layers: int, count: int) -> tuple[int, ...]:
    """``count`` layers, evenly spread; which ones is no question on a random model."""
    return tuple((2 * i + 1) * layers // (2 * count) for i in range(count))


def store(model: Any, ids: Any, folder: Path) -> None:
    """Save a model with its own logits and its greedy continuation."""
    import torch

    model.save_pretrained(folder)
    with torch.no_grad():
        logits = model(ids).logits
    text = model.generate(ids[:1, :8], max_new_tokens=NEW_TOKENS, do_sample=False)
    torch.save({"ids": ids, "logits": logits, "text": text}, folder / "wanted.pt")


def reload(cells: Sequence[Cell], folder: Path) -> None:
    """Load all models in a new process, without this project on its path, and note what it found."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run([sys.executable, "-c", STOCK, str(folder)], capture_output=True, text=True, env=environment,
                         cwd=folder, check=False)  # fmt: skip
    found = {line.split()[0]: line.split() for line in ran.stdout.splitlines() if len(line.split()) == 5}
    for cell in cells:
        if cell.name in found:
            _, apart, alike, clean, _ = found[cell.name]
            cell.apart, cell.alike, cell.clean = float(apart), alike == "1", clean == "1"
    if ran.returncode:
        print(ran.stderr[-2000:], file=sys.stderr)
