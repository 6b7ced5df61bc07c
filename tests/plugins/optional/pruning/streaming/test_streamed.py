"""Pruning layer by layer: equal to pruning in memory, and to itself after any interruption."""

import dataclasses
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from kills import killed

from apt.checkpoint.loading import quiet_transformers
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import (
    BadInputError,
    CannotWriteError,
    ExitCode,
    TargetExistsError,
    UnsupportedError,
    UsageError,
)
from apt.evaluation.scoring import score_rows
from apt.evaluation.texts import Rows, rows_from_ids
from apt.plugins.optional.pruning.contract import Effort
from apt.plugins.optional.pruning.decoder.block_work import BlockWork
from apt.plugins.optional.pruning.decoder.blocks import Decoder, sizes_of
from apt.plugins.optional.pruning.decoder.sizes import Sizes
from apt.plugins.optional.pruning.decoder.trace import trace
from apt.plugins.optional.pruning.goals import Goal
from apt.plugins.optional.pruning.strategies.structured import StructuredStrategy
from apt.plugins.optional.pruning.streaming.cuts import CutPlan
from apt.plugins.optional.pruning.streaming.masks import MaskPlan
from apt.plugins.optional.pruning.streaming.shards import Shards
from apt.plugins.optional.pruning.streaming.streamed import Streamed, StreamPlan, prune_streamed
from apt.plugins.optional.pruning.streaming.streams import Streams
from apt.plugins.optional.pruning.streaming.work_directory import WorkDirectory, work_directory_of
from apt.plugins.optional.pruning.structure.light import light_cut
from apt.plugins.optional.pruning.structure.reconstruct import Calibration, Cut, reconstruct
from apt.plugins.optional.pruning.structure.surgery import build


def random_rows(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(20, 65, (count,), generator=generator)
    ids = torch.randint(2, 280, (count, 64), generator=generator)
    return rows_from_ids(ids, source="random", lengths=lengths)


FITTED, HELDOUT = random_rows(40, 1), random_rows(9, 2)


@pytest.fixture(scope="module")
def dense(new_llama, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = new_llama(tmp_path_factory.mktemp("dense") / "llama", tie_word_embeddings=False, num_hidden_layers=4)
    return Checkpoint.open(path)


def run(checkpoint: Checkpoint, target: Path, plan: StreamPlan, **changes: Any) -> Streamed:
    given: dict[str, Any] = {"heldout": HELDOUT, "options": {"a": 1}, **changes}
    return prune_streamed(checkpoint, target, plan, FITTED, lambda _, streamed: streamed, **given)


def wanda_like(work: BlockWork) -> None:
    """Zero half of every row by weight times norm of its input, on the stream pruned so far."""
    # Nothing of the held-out rows is to be seen.
    assert {len(s) for s in (work.streams, work.dense_outputs, work.calls, work.valid)} == {work.fitted}
    inputs: dict[str, list[torch.Tensor]] = {role: [] for role in work.matrices}
    handles = [
        module.register_forward_pre_hook(lambda _m, args, role=role: inputs[role].append(args[0]))
        for role, module in work.matrices.items()
    ]
    for index in range(work.fitted):
        work.block(work.streams[index], **work.calls[index])
    for handle in handles:
        handle.remove()
    for role, module in work.matrices.items():
        weight: Any = module.weight
        squares = sum(x[valid].square().sum(0) for x, valid in zip(inputs[role], work.valid, strict=False))
        order = (weight.abs() * torch.as_tensor(squares).sqrt()).argsort(dim=1, stable=True)
        weight.data.scatter_(1, order[:, : weight.shape[1] // 2], 0.0)


MASK = MaskPlan.of(wanda_like, "half of each row", Goal(ratio=0.5), strategy="wanda-like", effort="fast")


def in_memory(checkpoint: Checkpoint, plan: CutPlan) -> tuple[Cut, Any]:
    model: Any = checkpoint.load(dtype=torch.float32)
    decoder = Decoder.of(model, checkpoint.architecture)
    if plan.effort == "light":
        cut = light_cut(decoder, FITTED, plan.before, plan.after)
    else:
        calibration = Calibration(trace(decoder, FITTED))
        cut = reconstruct(decoder, calibration, plan.before, plan.after, plan.dropped, measure=False).cut
    return cut, build(model, checkpoint.architecture, cut)


CUTS: dict[str, tuple[Effort, dict[str, int], tuple[int, ...]]] = {
    "light": ("light", {"kv_groups": 1, "ff": 48}, ()),
    "fast": ("fast", {"kv_groups": 1, "ff": 48}, ()),
    "fast, layers dropped at both ends and inside": ("fast", {"layers": 1, "ff": 56}, (0, 1, 3)),
    "fast, only layers dropped": ("fast", {"layers": 2}, (2, 3)),
}


def plan_of(checkpoint: Checkpoint, name: str) -> CutPlan:
    effort, sizes, dropped = CUTS[name]
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    return CutPlan.of(checkpoint, dataclasses.replace(before, **sizes), dropped, effort)


@pytest.mark.parametrize("memory_bytes", [1 << 30, 0])
@pytest.mark.parametrize("name", CUTS)
def test_cuts_are_those_made_in_memory(dense: Checkpoint, tmp_path: Path, name: str, memory_bytes: int):
    plan = plan_of(dense, name)
    told = run(dense, tmp_path / "out", plan, memory_bytes=memory_bytes, shard_bytes=40_000)
    cut, wanted = in_memory(dense, plan)
    assert [c.kept_heads for c in told.layers if c.place is not None] == [block.heads for block in cut.blocks]
    assert tuple(c.layer for c in told.layers if c.place is None) == cut.dropped
    written = Checkpoint.open(tmp_path / "out")
    assert len(written.weight_files) > 1
    model = written.load()
    weights = wanted.state_dict()
    assert all(torch.allclose(v, weights[n], atol=1e-4) for n, v in model.state_dict().items())
    for scores, rows in ((told.calibration, FITTED), (told.heldout, HELDOUT)):
        assert scores is not None
        assert abs(score_rows(model, rows).nll - scores.after.nll).max() < 1e-3
        assert abs(score_rows(dense.load(), rows).nll - scores.before.nll).max() < 1e-3
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert written.lineage is not None
    assert written.lineage["parent"]["digest"] == dense.digest() and written.lineage["options"] == {"a": 1}
    assert (tmp_path / "out" / "tokenizer.json").exists()


FAMILIES: dict[str, Callable[..., Any]] = {
    "phi3": transformers.Phi3Config, "gemma3_text": transformers.Gemma3TextConfig, "qwen2": transformers.Qwen2Config,
    "gpt2": transformers.GPT2Config,
}  # fmt: skip


@pytest.mark.parametrize("effort", ["light", "fast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_too(tmp_path: Path, family: str, effort: Effort):
    shape = {
        "vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True,
    }  # fmt: skip
    if family == "gpt2":
        shape = {"vocab_size": 288, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64}
    torch.manual_seed(0)
    with quiet_transformers():
        transformers.AutoModelForCausalLM.from_config(FAMILIES[family](**shape)).save_pretrained(tmp_path / "dense")
    checkpoint = Checkpoint.open(tmp_path / "dense")
    before = sizes_of(checkpoint.architecture, checkpoint.config)
    groups = before.kv_groups if family == "gpt2" else 1  # whose heads fill its hidden size
    plan = CutPlan.of(checkpoint, dataclasses.replace(before, kv_groups=groups, ff=48), effort=effort)
    run(checkpoint, tmp_path / "out", plan)
    weights = in_memory(checkpoint, plan)[1].state_dict()
    model = Checkpoint.open(tmp_path / "out").load()
    assert all(torch.allclose(v, weights[n], atol=1e-4) for n, v in model.state_dict().items())


@pytest.mark.parametrize("memory_bytes", [1 << 30, 0])
def test_masks_are_those_of_a_walk_in_memory(dense: Checkpoint, tmp_path: Path, memory_bytes: int):
    told = run(dense, tmp_path / "out", MASK, memory_bytes=memory_bytes)
    written = Checkpoint.open(tmp_path / "out")
    assert told.removed_share == 0.5 and not told.smaller
    assert {n: t.shape for n, t in written.tensors.items()} == {n: t.shape for n, t in dense.tensors.items()}
    assert all(cut.removed_share == 0.5 and cut.stream_error for cut in told.layers)
    linear = [n for n in dense.tensors if "proj" in n]
    for name in dense.tensors:
        one, other = written.read(name), dense.read(name)
        assert torch.equal(one != 0, one == other) if name in linear else torch.equal(one, other)
    model: Any = dense.load()
    again = run(dense, tmp_path / "again", dataclasses.replace(MASK, text="the same"))
    assert again.heldout is not None and told.heldout is not None
    assert (again.heldout.after.nll == told.heldout.after.nll).all()
    assert abs(score_rows(written.load(), HELDOUT).nll - told.heldout.after.nll).max() < 1e-3
    assert abs(score_rows(model, HELDOUT).nll - told.heldout.before.nll).max() < 1e-3


def test_what_runs_is_what_is_stored(new_llama, tmp_path: Path):
    checkpoint = Checkpoint.open(new_llama(tmp_path / "bf16", dtype="bfloat16"))
    for name in ("fast", "light"):
        plan = dataclasses.replace(plan_of(checkpoint, name), after=dataclasses.replace(
            sizes_of(checkpoint.architecture, checkpoint.config), kv_groups=1, ff=48))  # fmt: skip
        told = run(checkpoint, tmp_path / name, plan)
        written = Checkpoint.open(tmp_path / name)
        assert {t.dtype for t in written.tensors.values()} == {"BF16"}
        scores = score_rows(written.load(dtype=torch.float32), FITTED)
        assert abs(scores.nll - told.calibration.after.nll).max() < 1e-3


def weights(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix == ".safetensors"}


def dying(module: Any, name: str, call: int, *, after: bool) -> None:
    """Let the process be killed at the given call of a function, before or after it has done its work."""
    real, calls = getattr(module, name), iter(range(1, 1000))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        here = next(calls) == call
        if here and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if here:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, wrapped)


MOMENTS = [
    (Shards, "create", 1, 0), (Shards, "write", 1, 0), (Shards, "write", 3, 2), (Streams, "save", 2, 0),
    (Streams, "save", 5, 2), (Shards, "digest", 2, 1), (WorkDirectory, "_write", 1, 0), (WorkDirectory, "_write", 3, 1),
    (WorkDirectory, "_write", 5, 3), (Shards, "copy", 2, 4), (Shards, "index", 1, 4), (WorkDirectory, "remove", 1, 4),
]  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name", "call", "done"), MOMENTS, ids=[f"{n} {c}" for _, n, c, _ in MOMENTS])
def test_a_kill_at_any_moment_changes_nothing(
    dense: Checkpoint, tmp_path: Path, owner: Any, name: str, call: int, done: int, after: bool,
    whole: dict[str, bytes],
):  # fmt: skip
    def action(**changes: Any) -> Streamed:
        plan = plan_of(dense, "fast")
        memory_bytes = 0 if after else 1 << 30  # streams in files, or in memory
        return run(dense, tmp_path / "out", plan, memory_bytes=memory_bytes, shard_bytes=40_000, **changes)

    def interrupted() -> None:
        dying(owner, name, call, after=after)
        action()

    killed(interrupted)
    told = action(overwrite=name == "remove")
    expected = done + 1 if name == "_write" and after and call > 1 else done
    assert told.resumed_layers == (0 if name == "remove" and after else expected)
    assert weights(tmp_path / "out") == whole
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def whole(dense: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weight files of a run that was not interrupted."""
    path = tmp_path_factory.mktemp("whole") / "out"
    run(dense, path, plan_of(dense, "fast"), shard_bytes=40_000)
    return weights(path)


@pytest.fixture(scope="module")
def stopped(dense: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with two finished layers."""
    path = tmp_path_factory.mktemp("stopped") / "out"

    def interrupted() -> None:
        dying(WorkDirectory, "_write", 3, after=True)
        run(dense, path, plan_of(dense, "fast"), shard_bytes=40_000)

    killed(interrupted)
    return work_directory_of(path)


@pytest.fixture
def half(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, beside an output that is not there yet."""
    shutil.copytree(stopped, work_directory_of(tmp_path / "out"))
    return tmp_path / "out"


def damage_journal(work: Path) -> None:
    (work / "journal.json").write_text('{"format": 1, "key"')


def flip(path: Path, place: int) -> None:
    held = bytearray(path.read_bytes())
    held[place] ^= 1
    path.write_bytes(held)


def damage_weights(work: Path) -> None:
    for path in work.glob("model-*"):
        flip(path, path.stat().st_size // 2)


def damage_streams(work: Path) -> None:
    flip(max(work.glob("pruned-*.stream")), -1)  # the one that the journal seals


def lose_weights(work: Path) -> None:
    next(iter(work.glob("model-*"))).unlink()


def of_another_form(work: Path) -> None:
    value = json.loads((work / "journal.json").read_text())
    (work / "journal.json").write_text(json.dumps({**value, "done": [{"layer": 0}]}))


@pytest.mark.parametrize("damage", [damage_journal, damage_weights, damage_streams, lose_weights, of_another_form])
def test_damaged_work_begins_anew(
    dense: Checkpoint, half: Path, whole: dict[str, bytes], damage: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    damage(work_directory_of(half))
    told = run(dense, half, plan_of(dense, "fast"), shard_bytes=40_000)
    assert told.resumed_layers == 0
    assert "damaged; starting anew" in capfd.readouterr().err
    assert weights(half) == whole


def test_sound_work_is_gone_on_with(
    dense: Checkpoint, half: Path, whole: dict[str, bytes], capfd: pytest.CaptureFixture[str]
):
    (work_directory_of(half) / "pruned-00004.stream.partial").write_bytes(b"of a process that was killed")
    told = run(dense, half, plan_of(dense, "fast"), shard_bytes=40_000)
    assert told.resumed_layers == 2
    assert "going on after 2 finished layers" in capfd.readouterr().err
    assert weights(half) == whole


def test_other_options_or_another_text_begin_anew(dense: Checkpoint, half: Path, capfd: pytest.CaptureFixture[str]):
    told = run(dense, half, plan_of(dense, "light"), shard_bytes=40_000)
    assert told.resumed_layers == 0
    assert "another model, text or set of options; starting anew" in capfd.readouterr().err


def test_a_changed_parent_begins_anew(dense: Checkpoint, half: Path, new_llama, capfd: pytest.CaptureFixture[str]):
    other = Checkpoint.open(new_llama(half.parent / "x", tie_word_embeddings=False, num_hidden_layers=4, seed=1))
    told = run(other, half, plan_of(other, "fast"), shard_bytes=40_000)
    assert told.resumed_layers == 0
    assert "another model, text or set of options; starting anew" in capfd.readouterr().err


def test_the_same_output_is_worked_on_by_one_process(dense: Checkpoint, tmp_path: Path):
    def finish(_writer: Any, streamed: Streamed) -> Streamed:
        with pytest.raises(UsageError, match="another pruning is at work"):
            run(dense, tmp_path / "out", plan_of(dense, "light"))
        return streamed

    prune_streamed(dense, tmp_path / "out", plan_of(dense, "light"), FITTED, finish, options={})
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_fails_at_the_end_leaves_no_output_and_its_work(dense: Checkpoint, tmp_path: Path):
    def finish(*_: Any) -> None:
        raise BadInputError("not as it should be")

    with pytest.raises(BadInputError, match="not as it should be"):
        prune_streamed(dense, tmp_path / "out", plan_of(dense, "light"), FITTED, finish, options={})
    assert [p.name for p in tmp_path.iterdir()] == [".out.prune"]
    told = prune_streamed(dense, tmp_path / "out", plan_of(dense, "light"), FITTED, lambda _, s: s, options={})
    assert told.resumed_layers == 4
    with pytest.raises(TargetExistsError):
        run(dense, tmp_path / "out", plan_of(dense, "light"))


def test_a_replaced_output_is_not_touched_by_new_work(dense: Checkpoint, tmp_path: Path, whole: dict[str, bytes]):
    run(dense, tmp_path / "out", plan_of(dense, "fast"), shard_bytes=40_000)
    shutil.copytree(tmp_path / "out", tmp_path / "kept", copy_function=os.link)
    run(dense, tmp_path / "out", plan_of(dense, "light"), shard_bytes=40_000, overwrite=True)
    assert weights(tmp_path / "kept") == whole != weights(tmp_path / "out")


@pytest.mark.parametrize("limit", [2_000, 45_000])
def test_a_full_disk_is_one_line_and_leaves_nothing_by_halves(dense: Checkpoint, tmp_path: Path, limit: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CannotWriteError, match=r"cannot write .*: File too large") as caught:
            run(dense, tmp_path / "out", plan_of(dense, "fast"), shard_bytes=40_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code is ExitCode.CANNOT_WRITE and "free space" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_later_keeps_the_finished_layers(dense: Checkpoint, half: Path, whole: dict[str, bytes]):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (45_000, hard))
    try:
        with pytest.raises(CannotWriteError, match="cannot write"):
            run(dense, half, plan_of(dense, "fast"), shard_bytes=40_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not half.exists()
    assert run(dense, half, plan_of(dense, "fast"), shard_bytes=40_000).resumed_layers == 2
    assert weights(half) == whole


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    dense: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(CannotWriteError, match="has 10 B free, the work takes"):
        run(dense, tmp_path / "out", plan_of(dense, "light"))
    assert not list(tmp_path.iterdir())


def test_what_needs_the_whole_model_is_refused(dense: Checkpoint):
    before = sizes_of(dense.architecture, dense.config)
    with pytest.raises(UnsupportedError, match="effort full needs the whole model"):
        CutPlan.of(dense, before, effort="full")
    with pytest.raises(UnsupportedError, match="hidden size cannot be cut layer by layer"):
        CutPlan.of(dense, dataclasses.replace(before, hidden=16))


def test_the_strategy_gives_the_even_plan(dense: Checkpoint):
    plan = StructuredStrategy().stream_plan(dense, Goal(ratio=0.25), effort="light", seed=0, settings={})
    assert plan.after.layers == plan.before.layers and plan.after != plan.before
    assert isinstance(plan.after, Sizes) and plan.effort == "light"
