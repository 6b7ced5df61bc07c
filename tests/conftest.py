"""Fixtures shared by all tests: small models made on the spot, a home of their own for every test, a Hub."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

#: What tests of several folders call, beside fixtures.
sys.path.append(str(Path(__file__).with_name("helpers")))

# One thread each: the tests run in parallel, and torch's thread pools spin against one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
# What the tests read does not depend on the locale of who runs them.
os.environ["APT_LANG"] = "en"

TRAINING_TEXT = (
    "def add(a, b):\n    return a + b\n\n"
    "The quick brown fox jumps over the lazy dog. 你好，世界。 Numbers: 0123456789.\n"
)


def build_tokenizer(vocab_size: int) -> Any:
    """A byte-level BPE tokenizer with the GPT-2 pre-tokenizer; every text begins with ``<s>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TRAINING_TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=128
    )


def make_llama(path: Path, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> Path:
    """Write a random Llama checkpoint with tokenizer to ``path``; ``changes`` override the config."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": 288,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "tie_word_embeddings": True,
    }
    settings.update(changes)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(getattr(torch, dtype))
    model.save_pretrained(path)
    build_tokenizer(settings["vocab_size"]).save_pretrained(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def frozen_imports() -> None:
    """Keep what was imported so far out of garbage collections: each training run asks for several, of 0.5 s each."""
    gc.freeze()


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama (GQA, tied) that no test may change."""
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def new_llama() -> Callable[..., Path]:
    """The maker itself, for tests that need a model of their own."""
    return make_llama


@pytest.fixture(autouse=True)
def apt_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty home, so that no test sees a user's models, plugins or caches."""
    home = tmp_path / "apt-home"
    monkeypatch.setenv("APT_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama-models"))
    return home


def load_server(name: str) -> ModuleType:
    """Import a server of ``tests/servers``; the tests' folders are no packages."""
    path = Path(__file__).parent / "servers" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tests_servers_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A running Hub that ``HF_ENDPOINT`` names."""
    from huggingface_hub import constants

    with load_server("hub").Hub().running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


class Ran(NamedTuple):
    """What a command line gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Run the command line in this process; stdout and stderr also hold what native libraries write."""
    from apt.cli.main import main
    from apt.console import output
    from apt.plugins import host

    def run(*words: str | Path) -> Ran:
        capfd.readouterr()
        host.refresh()  # each call is a process of its own
        try:
            code = main([str(w) for w in words])
        except SystemExit as raised:
            code = raised.code if isinstance(raised.code, int) else 1
        finally:
            output.configure()
        captured = capfd.readouterr()
        return Ran(code, captured.out, captured.err)

    yield run
    host.refresh()
