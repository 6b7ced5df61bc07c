"""Students made of their teacher: which sizes, which layers, what stays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from apt.checkpoint.reader import Checkpoint
from apt.console.errors import UnsupportedError, UsageError
from apt.plugins.optional.distillation.shape import Shape, initialise, kept_layers, parse_shape, shape_of

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, new_llama: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.open(new_llama(tmp_path_factory.mktemp("shape") / "teacher", num_hidden_layers=4))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0.5x", Shape(2, 32, 4, 2, 64)),
        ("0.75x", Shape(3, 32, 4, 2, 64)),
        ("0.4x", Shape(2, 32, 4, 2, 44)),
        ("layers=2,ff=32", Shape(2, 32, 4, 2, 32)),
        ("hidden=16", Shape(4, 16, 4, 2, 64)),
        ("kv_heads=1", Shape(4, 32, 2, 1, 64)),
        (" heads = 2 ", Shape(4, 32, 2, 1, 64)),
    ],
)
def test_shapes(teacher: Checkpoint, text: str, wanted: Shape) -> None:
    assert parse_shape(text, teacher) == wanted


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.6, 0.9])
def test_a_share_is_kept_to(teacher: Checkpoint, share: float) -> None:
    shape, whole = parse_shape(f"{share}x", teacher), shape_of(teacher)

    def weights(s: Shape) -> int:
        return s.layers * (2 * s.hidden * 8 * (s.heads + s.kv_heads) + 3 * s.hidden * s.ff)

    assert share - 0.1 < weights(shape) / weights(whole) <= share


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.5x", "between 0 and 1"),
        ("1x", "between 0 and 1"),
        ("0.01x", "leaves no layer"),
        ("half", "names no size"),
        ("layer=2", "names no size"),
        ("layers=two", "no whole number"),
        ("layers=2,layers=3", "named twice"),
        ("layers=0", "not between 1 and 4"),
        ("layers=5", "not between 1 and 4"),
        ("hidden=30", "no multiple of the 4 heads"),
        ("heads=3,kv_heads=2", "do not fall evenly"),
        ("heads=4,kv_heads=1", "at most 2 on each"),
        ("layers=4", "as large as its teacher"),
        ("", "names no size"),
    ],
)
def test_what_is_no_shape_is_refused(teacher: Checkpoint, text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_shape(text, teacher)


def test_layers_are_spread_evenly_from_the_first_to_the_last() -> None:
    assert kept_layers(3, 6) == [0, 2, 5] and kept_layers(2, 4) == [0, 3] and kept_layers(1, 5) == [0]
    for of in range(1, 30):
        for n in range(1, of + 1):
            found = kept_layers(n, of)
            assert found == sorted(set(found)) and len(found) == n


def test_whole_layers_are_the_teachers_own(teacher: Checkpoint) -> None:
    model: Any = teacher.load()
    student = initialise(model, teacher.architecture, parse_shape("layers=2", teacher), shape_of(teacher))
    theirs, mine = model.state_dict(), student.state_dict()
    for name, tensor in mine.items():
        source = name.replace("layers.1.", "layers.3.")
        assert torch.equal(tensor, theirs[source])


def test_what_carries_nothing_can_go_without_a_change() -> None:
    """Heads and channels of no energy are cut: the narrower model is the same function."""
    config = Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            layer.mlp.down_proj.weight[:, index % 2 :: 2] = 0
            for group in (index % 4, (index + 2) % 4):
                layer.self_attn.o_proj.weight[:, group * 16 : group * 16 + 16] = 0
    from apt.checkpoint.architecture import ARCHITECTURES

    whole = Shape(4, 32, 8, 4, 64)
    student = initialise(model, ARCHITECTURES["qwen3"], Shape(4, 32, 4, 2, 32), whole)
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(student(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)
    assert student.num_parameters() < model.num_parameters()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (MistralConfig(**SIZES, sliding_window=8), "0.5x"),
        (MistralConfig(**SIZES), "layers=2,hidden=24,kv_heads=2,ff=32"),
        (Qwen2Config(**SIZES, use_sliding_window=True, max_window_layers=2, sliding_window=8), "layers=3,hidden=24"),
        (Qwen3Config(**SIZES, head_dim=8), "0.3x"),
        (Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8), "layers=3,hidden=24,heads=6,kv_heads=3"),
        (Olmo2Config(**SIZES), "layers=2,ff=16"),
        (Phi3Config(**SIZES), "layers=2"),
        (GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=32), "0.6x"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_families_give_stock_students(config: Any, text: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    teacher = Checkpoint.open(tmp_path / "teacher")
    shape = parse_shape(text, teacher)
    student = initialise(teacher.load(), teacher.architecture, shape, shape_of(teacher))
    student.save_pretrained(tmp_path / "student")
    written = Checkpoint.open(tmp_path / "student")
    assert shape_of(written) == shape
    with torch.no_grad():
        assert written.load()(input_ids=torch.arange(6)[None]).logits.isfinite().all()


@pytest.mark.parametrize("config", [Phi3Config(**SIZES), GPT2Config(n_embd=32, n_layer=4, n_head=4, n_inner=64)])
def test_fused_layers_are_not_made_narrower(config: Any, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="cannot be made narrower"):
        parse_shape("ff=32", Checkpoint.open(tmp_path))
