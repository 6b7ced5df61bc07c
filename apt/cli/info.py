"""``apt_model info``: what the headers and JSON files of a model tell."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from apt.checkpoint import facts
from apt.cli.arguments import ModelArgument
from apt.console import output
from apt.console.typer_options import JsonOption, QuietOption
from apt.plugins import host


@output.emits("apt.checkpoint.fact_sheet:ModelFacts")
def info(
    model: ModelArgument,
    context: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1 << 30,
            help="Tokens that cache, FLOPs and memory are given for; the model's, at most 8,192.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1 << 20, help="Sequences side by side in the cache.")] = 1,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a model is: parameters, cache, FLOPs, memory, tokenizer, template, licence, and what contradicts.

    Reads headers and JSON only, of a checkpoint directory, a .safetensors, .gguf, .bin or .pt file; no weights are
    loaded and nothing is unpickled. The chat template is rendered in a child process with bounded time and memory.
    Memory is that of weights and cache; activations come on top.

    \b
    Examples:
      apt_model info tiny
      apt_model info ./my-model --json
      apt_model info ./my-model --context 32768 --batch 8
      apt_model info my-model.gguf

    \b
    Exit codes: 0 shown, 2 wrong call, 3 no such model, 4 corrupted or contradictory files, 5 a format not supported.
    """
    output.configure(json=json, quiet=quiet)
    found = facts.model_facts(model, context=context, batch=batch)
    output.emit(replace(found, from_plugins=_told_by_plugins(found.path)))


def _told_by_plugins(path: Path) -> dict[str, str]:
    """Ask the plugins that have facts of their own; what is no mapping is left out."""
    told = [found for found in host.current().fire("information", model=path) if isinstance(found, Mapping)]
    return {str(label): str(text) for found in told for label, text in found.items()}
