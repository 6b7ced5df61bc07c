"""Adapters: what they are put on, that a run trains nothing else, and what is left in the end."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import small_config, small_model, small_rows

pytest.importorskip("peft")

from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from apt.console.errors import AptError, MissingDependencyError, UnsupportedError, UsageError
from apt.training.attention import NAME, fast_attention
from apt.training.contract import Resources
from apt.training.data.rows import batch_of
from apt.training.evaluation import score
from apt.training.forward import run_body
from apt.training.losses.ce import CrossEntropy, CrossEntropyOptions
from apt.training.module import LossModule
from apt.training.runner import run
from apt.training.tuning.lora import Lora, LoraOptions

LORA = {"name": "lora", "r": 4, "alpha": 8.0, "dropout": 0.1}


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4))


def trained_names(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def tuned(model: Any, **options: Any) -> tuple[Lora, Any]:
    lora = Lora(LoraOptions(**options), Resources(model=model))
    return lora, lora.begin(model)


@pytest.mark.parametrize("make", [small_model, gpt2])
def test_all_linear_is_every_layer_of_the_body_and_changes_nothing_at_first(make: Any) -> None:
    model, batch = make().eval(), batch_of(small_rows(), [0, 1])
    with torch.no_grad():
        before = run_body(model, batch).last
        _, adapted = tuned(model)
        after = run_body(adapted.eval(), batch).last
    assert torch.equal(before, after)
    names = trained_names(adapted)
    assert names and all(".lora_A." in name or ".lora_B." in name for name in names)
    assert not any("lm_head" in name or "embed" in name or "wte" in name for name in names)
    per_layer = 7 if make is small_model else 4
    assert len(names) == 2 * 2 * per_layer


def test_targets_are_named_by_the_ends_of_their_names() -> None:
    names = trained_names(tuned(small_model(), targets=["q_proj", "mlp.up_proj"])[1])
    assert len(names) == 2 * 2 * 2
    assert all("self_attn.q_proj" in name or "mlp.up_proj" in name for name in names)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (["q_prj"], UsageError, "the model has no layer 'q_prj'.*did you mean 'q_proj'"),
        (["q_proj", "norm"], UnsupportedError, "'norm' .*LlamaRMSNorm.* cannot have an adapter"),
        (["lm_head"], UnsupportedError, "'lm_head' .*Linear.* cannot have an adapter"),
        (["embed_tokens"], UnsupportedError, "'embed_tokens' .*Embedding.* cannot have an adapter"),
    ],
)
def test_targets_that_cannot_be_are_refused(targets: list[str], error: type[AptError], message: str) -> None:
    with pytest.raises(error) as caught:
        tuned(small_model(), targets=targets)
    assert re.search(message, f"{caught.value} {caught.value.hint}")


def test_a_missing_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependencyError, match="needs peft"):
        run(small_config(tuning=LORA), small_model(), small_rows(), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [(small_model, "adamw"), (lambda: small_model(tie_word_embeddings=False), "muon"), (gpt2, "adafactor")],
    ids=["tied", "untied", "gpt2"],
)
def test_a_run_leaves_a_stock_model_with_what_was_learned(make: Any, optimizer: str, tmp_path: Path) -> None:
    model, rows = make(), small_rows()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = small_config(steps=20, eval_every=10, tuning=LORA, optimizer={"name": optimizer, "lr": 0.02})
    result = run(config, model, rows, run_dir=tmp_path / "run")
    assert result.best_eval_loss < result.curve[0].eval_loss
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(".layers." in name or ".h." in name for name in changed)
    assert all(p.requires_grad for p in model.parameters()) and not hasattr(model, "peft_config")
    assert not any("lora" in name for name, _ in model.named_modules())

    model.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    written = [m.generate(rows.ids[:2, :4], max_new_tokens=5, do_sample=False) for m in (model, again)]
    assert torch.equal(*written) and written[0].shape == (2, 9)
    best = batch_of(rows, range(24))
    with torch.no_grad():
        assert torch.equal(score(model, best), score(again.eval(), best))


def test_the_merged_model_is_the_adapted_one() -> None:
    model, batch = small_model(), batch_of(small_rows(), range(4))
    lora, adapted = tuned(model, r=4)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        adapted.eval()
        wanted = run_body(adapted, batch).last
        assert lora.finish(adapted) is model
        assert torch.allclose(run_body(model, batch).last, wanted, atol=1e-5)


def test_a_saved_state_holds_the_adapters_only() -> None:
    _, adapted = tuned(small_model())
    module = LossModule(adapted, CrossEntropy(CrossEntropyOptions(), Resources()))
    state = module.trained_state()
    assert state and all("lora_" in name for name in state)


def test_short_window_attention_reaches_a_model_with_adapters() -> None:
    model, rows = small_model().eval(), small_rows()
    batch = batch_of(rows, range(4))
    with torch.no_grad():
        plain = run_body(model, batch).last
        with fast_attention([model], rows, torch.bfloat16):
            lora, adapted = tuned(model)
            assert adapted.config._attn_implementation == NAME
            fast = run_body(adapted.eval(), batch).last
            lora.finish(adapted)
    assert torch.allclose(plain, fast, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_with_adapters_writes() -> None:
    _, adapted = tuned(small_model())
    adapted.eval()
    written = adapted.generate(input_ids=small_rows().ids[:2, :4], max_new_tokens=3, do_sample=False)
    assert written.shape == (2, 7)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_that_does_not_improve_gives_the_model_back(optimizer: str, tmp_path: Path) -> None:
    model, rows = small_model(), small_rows()
    run(
        small_config(steps=30, eval_every=30, optimizer={"name": "adamw", "lr": 0.01}),
        model,
        rows,
        run_dir=tmp_path / "a",
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = {"lr": 0.5, "adamw_lr": 0.5} if optimizer == "muon" else {"lr": 0.5}
    ruin = small_config(steps=4, eval_every=2, tuning=LORA | {"alpha": 64.0}, optimizer={"name": optimizer, **rates})
    assert run(ruin, model, rows, run_dir=tmp_path / "b").best_step == 0
    for (name, parameter), (_, old) in zip(model.named_parameters(), before.items(), strict=True):
        assert torch.equal(parameter, old), name


def test_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    outcomes = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model = small_model()
        config = small_config(
            batch_rows=batch, grad_accum=accumulation, steps=4, eval_every=4, tuning=LORA | {"dropout": 0.0}
        )
        run(config, model, small_rows(), run_dir=tmp_path / str(batch))
        outcomes.append(dict(model.named_parameters()))
    first, second = outcomes
    for name, second_value in second.items():
        assert torch.allclose(first[name], second_value, atol=2e-5), name
