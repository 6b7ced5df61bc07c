"""The platform ModelScope, through its SDK.

The SDK (1.40) reports success when single files failed: what it says is not taken for granted here. After an upload
the server is asked what it holds; after a download every file is hashed.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apt.checkpoint.reader import file_digest
from apt.console.errors import AptError, BadInputError, MissingDependencyError, NetworkError, first_line
from apt.plugins.builtin.cloud_storage.manifest import check_paths

_KIND = "model"
#: What the server itself adds to a repository.
_SERVER_FILES = frozenset({".gitattributes"})


def connect() -> Any:
    """Return the SDK's client; address and token come from ``MODELSCOPE_ENDPOINT`` and ``MODELSCOPE_API_TOKEN``.

    :raises MissingDependencyError: when the SDK is not installed.
    """
    try:
        from modelscope_hub.api import HubApi  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "the platform modelscope needs the package 'modelscope'", hint="pip install modelscope"
        ) from None
    return HubApi()


def upload(api: Any, repository: str, files: Mapping[str, Path]) -> None:
    """Upload files by name, and check that the server holds each.

    :raises NetworkError: when the server refuses, or does not hold afterwards what was sent.
    """
    with tempfile.TemporaryDirectory(prefix="apt-upload-") as folder:
        for name, path in files.items():
            link = Path(folder) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
        _call(repository, lambda: None if api.repo_exists(repository, _KIND) else api.create_repo(repository, _KIND))
        _call(repository, lambda: api.upload_folder(repository, _KIND, folder, disable_tqdm=True))
    held = {f.path: f for f in _call(repository, lambda: api.list_repo_files(repository, _KIND))}
    for name, path in files.items():
        found = held.get(name)
        if found is None or found.size != path.stat().st_size or (found.sha256 and found.sha256 != file_digest(path)):
            raise NetworkError(
                f"{repository}: ModelScope does not hold {name} as it was sent", hint="run the same upload again"
            )


def download(api: Any, repository: str, revision: str, directory: Path) -> tuple[int, int]:
    """Download a repository into an empty directory, and return the number of files and their bytes.

    :raises BadInputError: when a file is not what the server's list says, or has no checksum there.
    """
    found = _call(repository, lambda: api.list_repo_files(repository, _KIND, revision=revision or None))
    files = [f for f in found if not f.is_dir and f.path not in _SERVER_FILES]
    try:
        check_paths(f.path for f in files)
    except ValueError as error:
        raise BadInputError(f"{repository}: {error}") from None
    for file in files:
        if not file.sha256:
            raise BadInputError(f"{repository}: ModelScope gives no checksum of {file.path}")
        _call(
            repository,
            lambda path=file.path: api.download_file(
                repository, _KIND, path, revision=revision or None, local_dir=directory
            ),
        )
        target = directory / file.path
        if not target.is_file() or target.is_symlink() or file_digest(target) != file.sha256:
            raise BadInputError(f"{repository}: {file.path} was received corrupted", hint="nothing was kept; try again")
    return len(files), sum(f.size for f in files)


def _call(repository: str, function: Any) -> Any:
    """Call the SDK, whose exceptions have no common base, and say in one line what it said."""
    try:
        return function()
    except AptError:
        raise
    except Exception as error:
        raise NetworkError(
            f"{repository}: ModelScope: {first_line(error)}", hint="check the name and MODELSCOPE_API_TOKEN"
        ) from error
