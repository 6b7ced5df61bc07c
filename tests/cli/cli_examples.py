"""What the examples of ``--help`` name, and which of them cannot be run as they are written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from apt import store


class Substitute(NamedTuple):
    """What is run in place of an example, and why; ``None`` where nothing can be."""

    example: str | None
    reason: str


_MINUTES = "takes minutes; the whole of it is run by test_quickstart.py"
_SECONDS = "the whole text of the embedded model takes long; a few rows of it show the same"

#: Examples that are run otherwise than they are written.
SUBSTITUTES = {
    "apt_model quickstart": Substitute("apt_model quickstart --dry-run", _MINUTES),
    "apt_model quickstart --model ./my-model --text my-text.txt --out ./my-run": Substitute(
        "apt_model quickstart --model ./my-model --text my-text.txt --out ./my-run --dry-run", _MINUTES
    ),
    "apt_model run quickstart --set model=./my-model --set text=my.txt --out ./my-run": Substitute(
        "apt_model run quickstart --set model=./my-model --set text=my.txt --out ./my-run --dry-run", _MINUTES
    ),
    "apt_model test tiny": Substitute("apt_model test tiny --max-rows 2 --new-tokens 4", _SECONDS),
    "apt_model compare tiny ./pruned ./recovered": Substitute(
        "apt_model compare tiny ./pruned ./recovered --max-rows 2", _SECONDS
    ),
    "apt_model prune tiny -o ./tiny-25": Substitute(
        "apt_model prune ./my-model -o ./tiny-25", "the embedded model takes half a minute"
    ),
    "apt_model distill --teacher tiny --student ./pruned -o ./recovered": Substitute(
        "apt_model distill --teacher ./my-model --student ./pruned -o ./recovered --steps 2 --window 32",
        "200 steps on the embedded model take minutes; two on a smaller one show the same",
    ),
    "apt_model distill --teacher ./big --student ./small -o ./out --text notes.jsonl --steps 500": Substitute(
        "apt_model distill --teacher ./big --student ./small -o ./out --text notes.jsonl --steps 2 --window 32",
        "500 steps take minutes",
    ),
    "apt_model distill --teacher tiny --student ./pruned -o ./recovered --seconds 60 --control --json": Substitute(
        "apt_model distill --teacher ./my-model --student ./pruned -o ./recovered --seconds 1 --window 32 --control "
        "--json",
        "60 seconds, twice",
    ),
    "ollama create my-model -f ./out/Modelfile": Substitute(None, "the program of Ollama is not part of this package"),
    "apt_model ollama verify ./tiny-ollama --model tiny": Substitute(
        "apt_model ollama verify ./tiny-ollama --model tiny --tokens 256", _SECONDS
    ),
    "apt_model cloud-storage backup ./pruned --to file:///mnt/drive/backups --name my-model --tag pruned": Substitute(
        "apt_model cloud-storage backup ./pruned --to file://{here}/mnt/drive/backups --name my-model --tag pruned",
        "only root may write below /",
    ),
    "apt_model cloud-storage upload --platform modelscope": Substitute(
        "apt_model cloud-storage upload --platform modelscope --dry-run", "ModelScope is a hosted service"
    ),
    "apt_model compare ./my-model my-model.gguf --task questions.jsonl --html compare.html": Substitute(
        "apt_model compare ./my-model my-model.gguf --task questions.jsonl --html compare.html --max-rows 2", _SECONDS
    ),
    "apt_model test my-model --baseline before.json": Substitute(
        "apt_model test my-model --baseline before.json --max-rows 2 --new-tokens 4", _SECONDS
    ),
    "apt_model visualize ./my-model --png": Substitute(
        "apt_model visualize ./my-model", "matplotlib, which draws pictures, is not part of this package"
    ),
    "apt_model plugin install ./my-plugin": Substitute(
        "apt_model plugin install ./my_plugin-1.0-py3-none-any.whl --dry-run",
        "installing would change the environment that runs the tests, and building a wheel asks a package index",
    ),
}

#: Examples that are not run a second time with ``--json``: they take seconds, and another one of the command has it.
ONCE = frozenset(
    {
        "apt_model test tiny",
        "apt_model compare tiny ./pruned ./recovered",
        "apt_model prune tiny -o ./tiny-25",
        "apt_model distill --teacher tiny --student ./pruned -o ./recovered",
        "apt_model distill --teacher ./big --student ./small -o ./out --text notes.jsonl --steps 500",
        "apt_model ollama export tiny -o ./tiny-ollama",
        "apt_model ollama verify ./tiny-ollama --model tiny",
    }
)

#: What follows these options is no input.
_OUTPUTS = ("-o", "--output", "--out", "--repo", "--name", "--tag")

_RECIPE = """\
title: Cut
inputs:
  model: ./my-model
  ratio: 0.25
steps:
  - name: prune
    operation: prune
    with: {model: "${inputs.model}", output: "${out}/pruned", ratio: "${inputs.ratio}", strategy: magnitude}
"""

_TRAINING = """\
model: my-model
data:
  train:
    name: text
    path: rows.txt
    window: 32
    max_rows: 16
train:
  steps: 2
  batch_rows: 2
  eval_rows: 4
"""

_PLUGIN = """\
from apt.plugins.base import Plugin
class Made(Plugin):
    name = "{name}"
    description = "says hello"
"""


class Furniture:
    """Puts what an example names where it names it; whatever costs time is made once.

    :param shared: a directory of the session.
    :param make_llama: the maker of small models in ``tests/conftest.py``.
    """

    def __init__(self, shared: Path, make_llama: Callable[..., Path]) -> None:
        self._shared = shared
        self._make_llama = make_llama

    def furnish(self, words: list[str], here: Path, hub: Any) -> None:
        """Put everything that the words of an example name into ``here``, the store, the Hub and its cache."""
        shutil.copytree(self._llama(), store.models_dir() / "my-model")
        for before, word in zip(["", *words], words, strict=False):
            value = word.partition("=")[2] or word
            if before not in _OUTPUTS and value in PLACES:
                PLACES[value](self, here, value, hub)

    def _llama(self) -> Path:
        """Weights large enough to decide between tokens, so that other engines decide alike."""
        path = self._shared / "llama"
        if not path.exists():
            self._make_llama(path, hidden_size=64, intermediate_size=96, initializer_range=0.2)
        return path

    def model(self, here: Path, word: str, hub: Any) -> None:
        shutil.copytree(self._llama(), here / word)

    def models(self, here: Path, word: str, hub: Any) -> None:
        shutil.copytree(self._llama(), here / word / "step-100")

    def gguf(self, here: Path, word: str, hub: Any) -> None:
        shutil.copytree(self._export(self._llama()), (here / word).parent, dirs_exist_ok=True)

    def tiny_gguf(self, here: Path, word: str, hub: Any) -> None:
        shutil.copytree(self._export(store.embedded_path()), here / word)

    def _export(self, model: Path) -> Path:
        from apt.plugins.builtin.ollama.export import export_gguf
        from apt.plugins.builtin.ollama.options import ExportOptions

        path = self._shared / f"{model.name}-gguf"
        if not path.exists():
            type_ = "q8_0" if model == store.embedded_path() else "f16"  # as the examples make them
            export_gguf(ExportOptions(model=str(model), output=path, type=type_, name="my-model"))
        return path

    def text(self, here: Path, word: str, hub: Any) -> None:
        lines = [f"{n} apples and {n * 7 % 23} pears are {n + n * 7 % 23} fruits. 你好，世界。\n" for n in range(400)]
        (here / word).write_text("".join(lines), encoding="utf-8")

    def documents(self, here: Path, word: str, hub: Any) -> None:
        lines = [json.dumps({"text": f"{n} apples and {n * 7 % 23} pears. " * 8}) + "\n" for n in range(100)]
        (here / word).write_text("".join(lines), encoding="utf-8")

    def recovery(self, here: Path, word: str, hub: Any) -> None:
        train = _TRAINING.partition("train:\n  steps")
        (here / word).write_text(f"train:\n  loss:\n    name: distill\n  steps{train[2]}", encoding="utf-8")

    def questions(self, here: Path, word: str, hub: Any) -> None:
        items = [
            {
                "context": f"{n} apples and {n} pears are",
                "choices": [f" {2 * n}", f" {n}", f" {3 * n + 1}"],
                "answer": 0,
            }
            for n in range(1, 13)
        ]
        (here / word).write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")

    def tested(self, here: Path, word: str, hub: Any) -> None:
        from apt.console.output import to_json
        from apt.evaluation.operations import TestOptions, check

        path = self._shared / "before.json"
        if not path.exists():
            options = TestOptions(model=str(self._llama()), max_rows=2, new_tokens=4)
            path.write_text(to_json(check(options)), encoding="utf-8")
        shutil.copy(path, here / word)

    def compared(self, here: Path, word: str, hub: Any) -> None:
        from apt.console.output import to_json
        from apt.evaluation.operations import CompareOptions, compare

        path = self._shared / "comparison.json"
        if not path.exists():
            llama = str(self._llama())
            options = CompareOptions(models=[llama, llama], labels=("a", "b"), max_rows=2, speed=False)
            path.write_text(to_json(compare(options)), encoding="utf-8")
        shutil.copy(path, here / word)

    def run(self, here: Path, word: str, hub: Any) -> None:
        log = [{"step": n, "epoch": n / 10, "loss": 4.0 / n, "learning_rate": 1e-3} for n in range(1, 11)]
        (here / word).mkdir()
        (here / word / "trainer_state.json").write_text(json.dumps({"log_history": log}), encoding="utf-8")

    def recipe(self, here: Path, word: str, hub: Any) -> None:
        (here / word).write_text(_RECIPE, encoding="utf-8")
        self.model(here, "my-model", hub)

    def training(self, here: Path, word: str, hub: Any) -> None:
        (here / word).write_text(_TRAINING, encoding="utf-8")
        self.text(here, "rows.txt", hub)

    def lesson(self, here: Path, word: str, hub: Any) -> None:
        config = _TRAINING.replace("train:\n  steps", "train:\n  loss:\n    name: distill\n  steps")
        (here / word).write_text(config, encoding="utf-8")
        self.text(here, "rows.txt", hub)

    def backups(self, here: Path, word: str, hub: Any) -> None:
        from apt.plugins.builtin.cloud_storage.backup import BackupOptions, backup

        path = self._shared / "backups"
        if not path.exists():
            backup(BackupOptions(model=store.EMBEDDED, to=str(path)))
            backup(BackupOptions(model=str(self._llama()), to=str(path), name="my-model"))
            other = self._make_llama(self._shared / "other", seed=1)
            backup(BackupOptions(model=str(other), to=str(path), name="my-model"))
        shutil.copytree(path, here / word)

    def hosted(self, here: Path, word: str, hub: Any) -> None:
        hub.tags[word, "v1.0"] = hub.commit(word, {p.name: p.read_bytes() for p in self._llama().iterdir()})

    def cached(self, here: Path, word: str, hub: Any) -> None:
        folder = store.hub_cache() / f"models--{word.removeprefix('hf:').replace('/', '--')}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        shutil.copytree(self._llama(), folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit, encoding="ascii")

    def wheel(self, here: Path, word: str, hub: Any) -> None:
        import zipfile

        info = f"{word.removeprefix('./').partition('-py3')[0]}.dist-info"
        with zipfile.ZipFile(here / word, "w") as file:
            file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: my_plugin\nVersion: 1.0\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/entry_points.txt", "[apt_model.plugins]\nmy-plugin = my_plugin:Made\n")
            file.writestr("my_plugin.py", _PLUGIN.format(name="my-plugin"))
            file.writestr(f"{info}/RECORD", "")

    def dropin(self, here: Path, word: str, hub: Any) -> None:
        path = store.home() / "plugins" / f"{word}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_PLUGIN.format(name=word), encoding="utf-8")

    def index(self, here: Path, word: str, hub: Any) -> None:
        offer = {"name": "greet-index", "description": "剪枝", "requirement": "greet-plugin>=1"}
        (here / word).write_text(json.dumps({"plugins": [offer]}), encoding="utf-8")

    def locked(self, here: Path, word: str, hub: Any) -> None:
        empty: dict[str, Any] = {"environment": {}, "packages": [], "dropins": [], "disabled": []}
        lock = {"format": "apt_model plugins", "version": 1, **empty}
        (here / word).write_text(json.dumps(lock), encoding="utf-8")


#: What examples name as an input, and how it comes there.
PLACES: dict[str, Callable[[Furniture, Path, str, Any], None]] = {
    "./my-model": Furniture.model,
    "./pruned": Furniture.model,
    "./recovered": Furniture.model,
    "./model": Furniture.model,
    "./a": Furniture.model,
    "./b": Furniture.model,
    "./big": Furniture.model,
    "./small": Furniture.model,
    "./checkpoint-500": Furniture.model,
    "./checkpoints": Furniture.models,
    "my-model.gguf": Furniture.gguf,
    "./out/my-model.gguf": Furniture.gguf,
    "./tiny-ollama": Furniture.tiny_gguf,
    "heldout.txt": Furniture.text,
    "my-text.txt": Furniture.text,
    "my.txt": Furniture.text,
    "text.txt": Furniture.text,
    "notes.jsonl": Furniture.documents,
    "my-recipe.yaml": Furniture.recipe,
    "my_run.yaml": Furniture.training,
    "training.yaml": Furniture.lesson,
    "recover.yaml": Furniture.recovery,
    "questions.jsonl": Furniture.questions,
    "before.json": Furniture.tested,
    "comparison.json": Furniture.compared,
    "./my-run": Furniture.run,
    "./backups": Furniture.backups,
    "gpt2": Furniture.hosted,
    "owner/name": Furniture.hosted,
    "me/pruned": Furniture.hosted,
    "hf:owner/name": Furniture.cached,
    "hf:Qwen/Qwen2.5-0.5B": Furniture.cached,
    "./my_plugin-1.0-py3-none-any.whl": Furniture.wheel,
    "greet": Furniture.dropin,
    "hello": Furniture.dropin,
    "./plugins.json": Furniture.index,
    "plugins.json": Furniture.locked,
    "apt-plugins.json": Furniture.locked,
}
