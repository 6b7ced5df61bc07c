"""The environment: right facts, and what stands in the way is found."""

from pathlib import Path

import pytest
import torch

from apt.evaluation import environment as module
from apt.evaluation.environment import PluginState, environment, other_apt_packages


def test_the_facts_are_those_of_the_libraries(apt_home: Path) -> None:
    import transformers

    found = environment([PluginState("a", "ready", "", "")])
    assert found.packages["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found.packages["transformers"] == transformers.__version__
    assert found.store == apt_home and found.store_free_bytes > 0
    assert found.torch_threads == torch.get_num_threads() and found.devices[0].kind == "cpu"
    assert found.sound and len(found.tables()) >= 3


def test_faults_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"transformers": "4.57.1", "tokenizers": ""}
    monkeypatch.setattr(module, "_version", lambda name: versions.get(name, "9.0"))
    monkeypatch.setattr(module, "LITTLE_DISK_BYTES", 1 << 62)
    monkeypatch.setattr(module, "LITTLE_MEMORY_BYTES", 1 << 62)
    found = environment([PluginState("broken", "failed", "ImportError: x", "pip install x")])
    codes = [f.code for f in found.findings]
    assert {"missing-package", "old-package", "little-disk", "little-memory", "plugin"} <= set(codes)
    assert not found.sound


def test_another_package_called_apt_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apt").mkdir()
    (tmp_path / "apt" / "__init__.py").write_text("")
    own = str(Path(module.__file__).parents[2])
    assert other_apt_packages([own]) == []
    assert other_apt_packages([own, str(tmp_path)]) == [tmp_path / "apt"]
    monkeypatch.setattr(module.sys, "path", [str(tmp_path), own])
    assert [f.severity for f in module._shadow_findings()] == ["error"]
    monkeypatch.setattr(module.sys, "path", [own, str(tmp_path)])
    assert [f.severity for f in module._shadow_findings()] == ["note"]
