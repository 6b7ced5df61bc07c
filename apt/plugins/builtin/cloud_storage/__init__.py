"""Cloud storage: backups that keep each tensor once, and whole models to and from the hubs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from apt.plugins.base import CommandRegistry, ComponentRegistry, Plugin

if TYPE_CHECKING:
    from apt.plugins.builtin.cloud_storage.backup import BackupResult
    from apt.plugins.builtin.cloud_storage.transfer import DownloadResult, UploadResult

_HERE = "apt.plugins.builtin.cloud_storage"


class CloudStoragePlugin(Plugin):
    """Backs models up, bit for bit and without storing a tensor twice, and moves them to and from platforms."""

    name: ClassVar[str] = "cloud-storage"
    version: ClassVar[str] = "0.1.0"
    author: ClassVar[str] = "The apt_model authors"
    description: ClassVar[str] = "Back up models by tensor, upload and download them"
    required_dependencies: ClassVar[Sequence[str]] = ()
    optional_dependencies: ClassVar[Sequence[str]] = ("modelscope>=1.40",)

    def register_commands(self, registry: CommandRegistry) -> None:
        """Declare ``cloud-storage``."""
        registry.add_command("cloud-storage", f"{_HERE}.commands:app", help=self.description)

    def register_components(self, registry: ComponentRegistry) -> None:
        """Declare the operations."""
        registry.add_component(
            "operation", "backup", f"{_HERE}.backup:backup", f"{_HERE}.backup:BackupOptions",
            "back a model up to a store",
        )  # fmt: skip
        registry.add_component(
            "operation", "restore", f"{_HERE}.restore:restore", f"{_HERE}.restore:RestoreOptions",
            "restore a model from a store, bit for bit",
        )  # fmt: skip

    def backup(self, model_path: str | Path, destination: str) -> "BackupResult":
        """Back a model up to a store (``file:///…``)."""
        from apt.plugins.builtin.cloud_storage.backup import BackupOptions, backup

        return backup(BackupOptions(model=str(model_path), to=destination))

    def upload(self, files: str | Path, repo_name: str, platform: str = "huggingface") -> "UploadResult":
        """Upload a model's directory (or a single file) to a platform: huggingface, modelscope or local."""
        from apt.plugins.builtin.cloud_storage.transfer import UploadOptions, upload

        return upload(UploadOptions(model=str(files), repository=repo_name, platform=platform))

    def download(self, repo_name: str, platform: str, local_path: str | Path) -> "DownloadResult":
        """Download a model from a platform into a new directory."""
        from apt.plugins.builtin.cloud_storage.transfer import DownloadOptions, download

        return download(DownloadOptions(repository=repo_name, platform=platform, output=Path(local_path)))
