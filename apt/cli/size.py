"""``apt_model size``: where a model's bytes are."""

from apt.checkpoint import sizes
from apt.cli.arguments import ModelArgument
from apt.console import output
from apt.console.typer_options import JsonOption, QuietOption


@output.emits("apt.checkpoint.sizes:SizeFacts")
def size(
    model: ModelArgument,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the bytes of a model by component and dtype, from its headers.

    \b
    Examples:
      apt_model size tiny
      apt_model size my-model.gguf --json

    \b
    Exit codes: 0 shown, 2 wrong call, 3 no such model, 4 corrupted files, 5 a format not supported.
    """
    output.configure(json=json, quiet=quiet)
    output.emit(sizes.size_facts(model))
