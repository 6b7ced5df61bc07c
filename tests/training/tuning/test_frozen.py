"""Training some parameters: which, that the others stay, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import small_config, small_model, small_rows
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from apt.console.errors import UsageError
from apt.training.contract import Resources
from apt.training.losses.ce import CrossEntropy, CrossEntropyOptions
from apt.training.module import LossModule
from apt.training.runner import run
from apt.training.tuning.frozen import Frozen, FrozenOptions


def trained(model: Any, **options: Any) -> set[str]:
    Frozen(FrozenOptions(**options), Resources()).begin(model)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names(model: Any) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def test_what_is_chosen_is_trained() -> None:
    every = names(small_model())
    assert trained(small_model(), train=["*.mlp.*"]) == {n for n in every if ".mlp." in n}
    assert trained(small_model(), freeze=["model.embed_tokens.*"]) == every - {"model.embed_tokens.weight"}
    assert trained(small_model(), last_layers=1) == {n for n in every if ".layers.1." in n}
    both = trained(small_model(), last_layers=1, train=["model.norm.weight"], freeze=["*.mlp.*"])
    assert both == {n for n in every if ".layers.1." in n and ".mlp." not in n} | {"model.norm.weight"}


def test_the_last_layers_of_other_families_are_found() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=3, n_head=4))
    assert trained(model, last_layers=2) == {n for n in names(model) if ".h.1." in n or ".h.2." in n}


def test_what_is_said_of_a_tied_head_is_said_of_the_embedding() -> None:
    assert trained(small_model(), train=["lm_head.weight"]) == {"model.embed_tokens.weight"}
    assert "model.embed_tokens.weight" not in trained(small_model(), freeze=["lm_head.*"])
    untied = small_model(tie_word_embeddings=False)
    assert trained(untied, train=["lm_head.weight"]) == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ["*.mpl.*"]}, r"train.tuning.train: no parameter matches '\*.mpl.\*'"),
        ({"freeze": ["lm_haed.*"]}, "train.tuning.freeze: no parameter matches 'lm_haed"),
        ({"freeze": ["*"]}, "no parameter is left to train"),
        ({"train": ["*.mlp.*"], "freeze": ["model.layers.*"]}, "no parameter is left to train"),
        ({"last_layers": 3}, "last_layers: 3 of 2 layers"),
    ],
)
def test_what_cannot_be_trained_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        trained(small_model(), **options)


def test_a_choice_is_needed() -> None:
    with pytest.raises(UsageError, match="give last_layers, train or freeze"):
        small_config(tuning={"name": "frozen"})


@pytest.mark.parametrize("tied", [True, False])
def test_a_run_changes_what_it_trains_and_nothing_else(tied: bool, tmp_path: Path) -> None:
    model, rows = small_model(tie_word_embeddings=tied), small_rows()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = small_config(steps=20, eval_every=10, tuning={"name": "frozen", "last_layers": 1})
    result = run(config, model, rows, run_dir=tmp_path / "run")
    assert result.best_eval_loss < result.curve[0].eval_loss
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if ".layers.1." in name}
    assert all(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path / "out")
    again = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "out").named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in model.named_parameters())


def test_a_saved_state_holds_what_is_trained_only() -> None:
    model = Frozen(FrozenOptions(train=["lm_head.*", "*.1.mlp.*"]), Resources()).begin(small_model())
    state = LossModule(model, CrossEntropy(CrossEntropyOptions(), Resources())).trained_state()
    assert set(state) == {"model.model.embed_tokens.weight"} | {
        f"model.model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")
    }
