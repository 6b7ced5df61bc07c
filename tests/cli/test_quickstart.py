"""``apt_model quickstart``: the shipped recipe, from a model to its report."""

import json

import pytest

from apt.recipes.catalog import find, shipped

STEPS = [
    "import", "texts", "test", "prune", "distill", "compare", "export-f16", "export-q8_0", "verify-f16", "verify-q8_0",
    "backup-parent", "backup-pruned", "backup-recovered", "restore", "new-in-pruned", "new-in-recovered", "restored",
    "report",
]  # fmt: skip

#: Sentences of a small world: predictable enough that a small model learns them in seconds.
WORLD = [
    f"the {size} {animal} {verb} the {colour} {thing}. "
    for size in ("big", "small")
    for animal in ("fox", "dog", "cat")
    for verb in ("sees", "eats")
    for colour in ("red", "green", "blue")
    for thing in ("ball", "apple")
]


def world(seed: int, sentences: int) -> str:
    import random

    return "".join(random.Random(seed).choices(WORLD, k=sentences))


@pytest.fixture
def taught(new_llama, tmp_path):
    """A small Llama that has learned the small world, in some seconds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = new_llama(
        tmp_path / "taught", hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = torch.tensor(tokenizer(world(1, 2000))["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        starts = torch.randint(len(ids) - 64, (8,), generator=generator)
        rows = torch.stack([ids[s : s + 64] for s in starts])
        rows[:, 0] = tokenizer.bos_token_id
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(path)
    return path


def test_the_whole_job(cli, taught, tmp_path):
    text, out = tmp_path / "world.txt", tmp_path / "out"
    text.write_text("\n".join(world(2, 40) for _ in range(12)) + "\n")
    words = ["quickstart", "--model", taught, "--text", text, "--out", out]
    words += ["--set", "steps=20", "--set", "heldout_rows=4", "--json"]
    ran = cli(*words)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert [s["name"] for s in told["steps"]] == STEPS
    report = json.loads((out / "report.json").read_text())
    assert set(report["results"]) == set(STEPS) - {"report"}
    assert [s["name"] for s in report["states"]][:4] == ["parent", "pruned", "control", "recovered"]
    assert all(c["passed"] for c in report["checks"])
    assert (out / "report.html").stat().st_size > 10_000
    from transformers import AutoModelForCausalLM

    parent, recovered = (AutoModelForCausalLM.from_pretrained(out / n) for n in ("parent", "restored"))
    assert recovered.num_parameters() < parent.num_parameters()
    failed = cli(*words[:-1], "--set", "max_perplexity_ratio=0.5")
    assert failed.code == 10
    assert "perplexity at most 0.5 × the parent's" in failed.err
    assert "recovered" in failed.out
    again = cli(*words)
    assert [s["action"] for s in json.loads(again.out)["steps"]] == ["cached"] * 17 + ["run"]


def test_the_plan(cli, llama_dir, tmp_path):
    ran = cli("quickstart", "--model", llama_dir, "--out", tmp_path / "out", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    steps = json.loads(ran.out)["steps"]
    assert [s["name"] for s in steps] == STEPS
    assert steps[1]["operation"] == "sample-text"  # no text was given, and the model is not tiny
    assert not (tmp_path / "out").exists()


def test_inputs_follow_the_model(llama_dir):
    from apt.cli.quickstart import default_inputs

    assert default_inputs("tiny") == {"model": "tiny", "text": "embedded"}
    assert default_inputs(str(llama_dir)) == {"model": str(llama_dir), "text": "self", "steps": "200"}


def test_a_text_file_is_cut_in_parts(cli, llama_dir, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Some words.\n" * 100)
    ran = cli("quickstart", "--model", llama_dir, "--text", text, "--dry-run", "--json")
    assert json.loads(ran.out)["steps"][1]["operation"] == "embedded-text"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "./nowhere"), "no model at ./nowhere"),
        (("--model", "tinny"), "did you mean 'tiny'?"),
        (("--model", "MODEL", "--text", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_is_missing_is_told_before_anything_runs(cli, llama_dir, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    ran = cli("quickstart", *[llama_dir if w == "MODEL" else w for w in words])
    assert ran.code == 3
    assert message in ran.err
    assert not (tmp_path / "quickstart").exists()


def test_the_recipes_are_shipped_beside_their_engine():
    assert find("quickstart") == shipped()["quickstart"]
    for path in shipped().values():
        assert path.read_text(encoding="utf-8").startswith("# ")
