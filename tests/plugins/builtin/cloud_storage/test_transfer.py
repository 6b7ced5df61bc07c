"""Uploads and downloads: what the platform holds is compared; the published calls work as written."""

import inspect
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from apt.checkpoint.reader import file_digest
from apt.console.errors import BadInputError, MissingDependencyError, NetworkError, NotFoundError, UnsupportedError
from apt.plugins.builtin.cloud_storage import CloudStoragePlugin, modelscope
from apt.plugins.builtin.cloud_storage.commands import app
from apt.plugins.builtin.cloud_storage.transfer import DownloadOptions, UploadOptions, download, plan_upload, upload

#: huggingface_hub's own call of its HTTP library.
UPLOADS = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


def test_the_class_has_the_published_methods():
    plugin = CloudStoragePlugin()
    assert list(inspect.signature(plugin.backup).parameters)[:2] == ["model_path", "destination"]
    assert list(inspect.signature(plugin.upload).parameters)[:3] == ["files", "repo_name", "platform"]
    assert list(inspect.signature(plugin.download).parameters)[:3] == ["repo_name", "platform", "local_path"]


@UPLOADS
def test_a_model_goes_to_a_hub_and_back(hub, llama_dir, tmp_path, tree, capsys):
    plugin = CloudStoragePlugin()
    sent = plugin.upload(llama_dir, "sent", "huggingface")
    assert (sent.repository, sent.revision) == ("me/sent", hub.heads["me/sent"])
    assert capsys.readouterr().err.startswith("uploading llama (5 files, 160,010 bytes) to huggingface: sent")
    got = plugin.download("me/sent", "huggingface", tmp_path / "back")
    assert got.revision == sent.revision and tree(tmp_path / "back") == tree(llama_dir)
    hub.corrupt.add("config.json")
    with pytest.raises(BadInputError, match=r"config\.json was received corrupted"):
        plugin.download("me/sent", "huggingface", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_hub_that_names_files_outside_writes_nothing(hub, tmp_path):
    hub.commit("me/hostile", {"../evil": b"x", "config.json": b"{}"})
    with pytest.raises(BadInputError, match="leaves the directory"):
        download(DownloadOptions(repository="me/hostile", output=tmp_path / "sub" / "out"))
    assert not (tmp_path / "evil").exists() and not (tmp_path / "sub" / "out").exists()


def test_a_folder_is_a_platform(llama_dir, tmp_path, tree):
    target = tmp_path / "mounted" / "model"
    upload(UploadOptions(model=str(llama_dir), platform="local", repository=str(target)))
    assert tree(target) == tree(llama_dir)
    got = download(DownloadOptions(repository=str(target), platform="local", output=tmp_path / "back"))
    assert got.files == 5 and tree(tmp_path / "back") == tree(llama_dir)


def test_without_a_model_the_newest_is_taken_and_named(llama_dir, apt_home, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(NotFoundError, match="the store holds none"):
        upload(UploadOptions(platform="modelscope"))
    shutil.copytree(llama_dir, apt_home / "models" / "latest")
    with pytest.raises(MissingDependencyError) as caught:
        upload(UploadOptions(platform="modelscope"))
    assert caught.value.hint == "pip install modelscope"
    assert "taking the newest in the store, latest" in capsys.readouterr().err
    plan = plan_upload(UploadOptions(platform="modelscope"))
    assert plan.dry_run and plan.repository == "latest" and plan.files == 5


@pytest.mark.parametrize(
    ("name", "hint"),
    [("google-drive", "mounted folder"), ("s3", "mount"), ("oss", "mount"), ("huggingfase", "did you")],
)
def test_platforms_that_this_version_does_not_cover(llama_dir, name, hint):
    with pytest.raises(UnsupportedError) as caught:
        upload(UploadOptions(model=str(llama_dir), platform=name, repository="x"))
    assert hint in str(caught.value)


class Sdk:
    """The calls of ModelScope's SDK that are used, on a directory; like the SDK it may lose a file silently."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lose = ""

    def repo_exists(self, repository, kind):
        return (self.root / repository).exists()

    def create_repo(self, repository, kind):
        (self.root / repository).mkdir(parents=True)

    def upload_folder(self, repository, kind, folder, disable_tqdm):
        shutil.copytree(folder, self.root / repository, dirs_exist_ok=True)
        (self.root / repository / self.lose).unlink() if self.lose else None

    def list_repo_files(self, repository, kind, revision=None):
        base = self.root / repository
        if not base.exists():
            raise ValueError("404: no such repository")
        return [
            SimpleNamespace(path=p.name, size=p.stat().st_size, sha256=file_digest(p), is_dir=False)
            for p in base.iterdir()
        ]

    def download_file(self, repository, kind, path, revision, local_dir):
        if path != self.lose:
            shutil.copy(self.root / repository / path, local_dir)


def test_modelscope_s_sdk_is_not_taken_at_its_word(llama_dir, tmp_path, tree):
    sdk = Sdk(tmp_path / "scope")
    files = {p.name: p for p in llama_dir.iterdir()}
    modelscope.upload(sdk, "me/model", files)
    (tmp_path / "out").mkdir()
    assert modelscope.download(sdk, "me/model", "", tmp_path / "out")[0] == 5
    assert tree(tmp_path / "out") == tree(llama_dir)
    sdk.lose = "config.json"
    (tmp_path / "out2").mkdir()
    with pytest.raises(BadInputError, match=r"config\.json was received corrupted"):
        modelscope.download(sdk, "me/model", "", tmp_path / "out2")
    with pytest.raises(NetworkError, match=r"does not hold config\.json"):
        modelscope.upload(sdk, "me/other", files)
    with pytest.raises(NetworkError, match="404"):
        modelscope.download(sdk, "me/absent", "", tmp_path / "out2")


def test_the_commands_end_to_end(llama_dir, tmp_path, tree):
    runner = CliRunner()

    def call(*words: object) -> dict:
        result = runner.invoke(app, [*map(str, words), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    store = (tmp_path / "store").as_uri()
    planned = call("backup", llama_dir, "--to", store, "--dry-run")
    assert planned["dry_run"] and not (tmp_path / "store").exists()
    assert call("backup", llama_dir, "--to", store)["version"] == 1
    listed = call("list", "--from", store)
    assert [(v["name"], v["version"], v["fault"]) for v in listed["versions"]] == [("llama", 1, "")]
    assert call("restore", "llama@1", "--from", store, "-o", tmp_path / "out", "--dry-run")["dry_run"]
    assert call("restore", "llama@1", "--from", store, "-o", tmp_path / "out")["verified_files"] == 5
    assert tree(tmp_path / "out") == tree(llama_dir)
    table = runner.invoke(app, ["list", "--from", store, "llama"])
    assert "llama@1" in table.stdout
