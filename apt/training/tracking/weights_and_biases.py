"""Weights & Biases: online, or as files that ``wandb sync`` sends later."""

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from apt.checkpoint.atomic import atomic_file

#: In the run directory: the id of the W&B run.
PLACE_NAME: Final = "wandb_run.json"
#: In the run directory: what W&B itself writes.
FOLDER: Final = "wandb"
_SERVER: Final = "https://api.wandb.ai"


def has_key() -> bool:
    """Whether W&B would find a key, where it looks itself: ``WANDB_API_KEY``, a token file, or the user's netrc."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    server = urlsplit(os.environ.get("WANDB_BASE_URL") or _SERVER).netloc
    named = os.environ.get("NETRC")
    places = [Path(named).expanduser()] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for place in places:
        try:
            found = netrc.netrc(place).authenticators(server)
        except (OSError, netrc.NetrcParseError):
            continue
        if found and found[2]:
            return True
    return False


class WeightsAndBiases:
    """A W&B run that a resumed run goes on with, under the same id.

    It prints nothing, captures no output and leaves no process behind. W&B brings its offline files to the disk at the
    end only, so that a killed run's hold next to nothing. Therefore a resumed run tells W&B the whole log of its saved
    state again: offline into one new file that takes the place of the unfinished ones, online from the first step that
    the server does not have.

    :param mode: ``online`` or ``offline``.
    :param history: what was logged until the state that the run goes on from, each entry with its ``step``.
    """

    title = "W&B"

    def __init__(
        self,
        run_dir: Path,
        record: Mapping[str, Any],
        *,
        mode: str,
        project: str,
        name: str,
        history: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        import wandb

        self._library: Any = wandb
        self._alone = self._library.run is None
        run_id = _kept_id(run_dir / PLACE_NAME)
        unfinished = list((run_dir / FOLDER).glob(f"offline-run-*-{run_id}"))
        silent = {"silent": True, "quiet": True, "console": "off", "disable_git": True, "save_code": False}
        if self._alone:
            # Before a run: what W&B reports of itself goes by these settings, not by the run's.
            self._library.setup(settings=self._library.Settings(mode=mode, **silent))
        self._run = self._library.init(
            id=run_id,
            project=project,
            name=name,
            dir=str(run_dir),
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            config=dict(record),
            settings=self._library.Settings(**silent),
        )
        known = int(self._run.step) if mode == "online" else 0
        for entry in history:
            step = int(entry["step"])
            if step >= known:
                self.log(step, {k: v for k, v in entry.items() if "/" in k})
        for folder in unfinished:
            shutil.rmtree(folder, ignore_errors=True)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Tell W&B of a step's figures."""
        if figures:
            self._run.log(dict(figures), step=step)

    def close(self, *, failed: bool) -> None:
        """Finish the run and end W&B's own process."""
        self._run.finish(exit_code=1 if failed else 0)
        if self._alone:
            self._library.teardown()


def _kept_id(place: Path) -> str:
    """Return the id that the run directory holds; a new one, which is kept there, where it holds none."""
    try:
        return str(json.loads(place.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        made = secrets.token_hex(4)
    with atomic_file(place, overwrite=True) as stream:
        stream.write(json.dumps({"id": made}).encode())
    return made
