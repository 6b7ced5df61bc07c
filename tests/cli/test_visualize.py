"""``visualize`` on the command line: the page, its JSON and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def test_page_json_and_exit_codes(
    cli: Callable, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("visualize", llama_dir, "-o", "页.html", "--lang", "zh-CN", "--json")
    told = json.loads(ran.out)
    assert ran.code == 0 and told["path"] == "页.html" and told["language"] == "zh-CN"
    assert 'lang="zh-CN"' in (tmp_path / "页.html").read_text(encoding="utf-8")
    assert cli("visualize", llama_dir, "-o", "页.html").code == 7
    assert cli("visualize", llama_dir, "-o", "b.html", "--lang", "xx").code == 2
    assert cli("visualize", tmp_path / "nowhere").code == 3
    (tmp_path / "bad.json").write_text("[]")
    assert cli("visualize", "bad.json").code == 4
    shown = cli("visualize", llama_dir, "-o", "c.html")
    assert "Parameters by component" in shown.out and shown.code == 0
