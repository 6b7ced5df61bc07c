"""``apt_model info``: what the headers and JSON files of a model tell."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from apt.checkpoint import facts
from apt.cli.arguments import ModelArgument
from apt.console import output
from apt.console.typer_options import JsonOption, QuietOption
from apt.plugins import host


@output.emits("apt.checkpoint.facts:ModelFacts")
def info(
    model: ModelArgument,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show architecture, parameters by component, dtypes, context, heads and KV cache of a model.

    Reads headers and JSON only, of a checkpoint directory, a .safetensors or a .gguf file; no weights are loaded.

    \b
    Examples:
      apt_model info tiny
      apt_model info ./my-model --json
      apt_model info my-model.gguf

    \b
    Exit codes: 0 shown, 2 wrong call, 3 no such model, 4 corrupted or contradictory files, 5 a format not supported.
    """
    output.configure(json=json, quiet=quiet)
    known = facts.model_facts(model)
    output.emit(dataclasses.replace(known, from_plugins=_from_plugins(known.path)))


def _from_plugins(model: Path) -> dict[str, str]:
    """Ask the plugins that know more of a model; what is no fact is left out."""
    told = [found for found in host.current().fire("information", model=model) if isinstance(found, Mapping)]
    return {str(name): str(value) for found in told for name, value in found.items()}
