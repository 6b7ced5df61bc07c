"""Names of models."""

from pathlib import Path

import pytest

from apt import store
from apt.console.errors import NotFoundError, UsageError


def test_home_and_names(apt_home: Path) -> None:
    assert store.home() == apt_home
    assert store.list_models() == []
    assert store.newest() is None
    made = store.model_path("模型 1")
    made.mkdir(parents=True)
    assert store.resolve("模型 1") == made
    assert store.list_models() == [made]
    assert store.newest() == made


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", ".hidden", "a\\b", "a\0b", "tiny"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError):
        store.model_path(name)


def test_a_path_wins(apt_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.model_path("m").mkdir(parents=True)
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert store.resolve("m") == Path("m")


def test_tiny_is_there() -> None:
    assert (store.resolve("tiny") / "heldout.txt").exists()


def test_unknown_names_get_the_nearest() -> None:
    store.model_path("pruned").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="did you mean 'pruned'"):
        store.resolve("prunned")
    with pytest.raises(NotFoundError, match="no model at"):
        store.resolve("./nowhere/x")


def test_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "models--a--b"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    assert store.resolve("hf:a/b") == folder / "snapshots" / "abc"
    assert store.resolve("hf:a/b@abc") == folder / "snapshots" / "abc"
    with pytest.raises(NotFoundError, match="huggingface import a/b --revision v2"):
        store.resolve("hf:a/b@v2")
    for bad in ("hf:", "hf:a/b/c", "hf:a/b@../../x", "hf:../x"):
        with pytest.raises(UsageError):
            store.resolve(bad)
