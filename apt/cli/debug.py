"""``apt_model debug``: faults of the environment, or of a model."""

from typing import TYPE_CHECKING, Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import ExitCode, UsageError
from apt.console.typer_options import JsonOption, QuietOption

if TYPE_CHECKING:
    from apt.evaluation.environment import PluginCheck, PluginState


@output.emits("apt.evaluation.environment:Environment", "apt.checkpoint.diagnosis:Diagnosis")
def debug(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A path, a name in the store, tiny, hf:owner/name.", show_default=False),
        Completes("model"),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also load and run MODEL: activations, KV cache, settings that do not fit.")
    ] = False,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text that --deep judges by (.txt or .jsonl); the embedded one when absent.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Find faults of the environment; with MODEL, faults of its files, config, tensors, tokenizer and weights.

    Each finding says what shows it, the likely cause and what mends it. Without --deep the model is read, never loaded:
    a pass over headers, JSON files and the raw weights, without torch. With --deep it is run on a text: settings and
    weights that fit by shape only are found by the changes that make the text likelier.

    \b
    Examples:
      apt_model debug
      apt_model debug ./my-model
      apt_model debug ./my-model --deep
      apt_model debug my-model.gguf --json

    \b
    Exit codes: 0 no error found (warnings may be), 2 wrong call, 3 no such model, 10 an error was found.
    """
    output.configure(json=json, quiet=quiet)
    if text is not None and not deep:
        raise UsageError("--text is read by --deep alone", hint="apt_model debug MODEL --deep --text FILE")
    if model is None:
        if deep:
            raise UsageError("--deep runs a model, and none is named", hint="apt_model debug MODEL --deep")
        from apt.evaluation.environment import environment

        state = environment(_plugin_states(), _plugin_checks("diagnostics"))
        output.emit(state)
        return ExitCode.OK if state.sound else ExitCode.CHECK_FAILED
    if deep:
        from apt.evaluation.deep import diagnose_deeply

        diagnosis = diagnose_deeply(model, text=text or "embedded")
    else:
        from apt.checkpoint.diagnosis import diagnose

        diagnosis = diagnose(model)
    from apt.checkpoint.findings import warning

    told = _plugin_checks("model_diagnostics", model=diagnosis.path)
    findings = [warning("plugin-check", c.check, c.message, "a plugin's own check", c.hint) for c in told if not c.ok]
    diagnosis = diagnosis.plus([c.check for c in told], findings)
    output.emit(diagnosis)
    return ExitCode.CHECK_FAILED if diagnosis.verdict == "faulty" else ExitCode.OK


def _plugin_states() -> "list[PluginState]":
    from apt.evaluation.environment import PluginState
    from apt.plugins import host

    return [PluginState(p.name, p.status, p.reason, p.mend) for p in host.current().data.plugins]


def _plugin_checks(hook: str, **facts: object) -> "list[PluginCheck]":
    """Ask the plugins that have checks of their own."""
    from apt.evaluation.environment import PluginCheck
    from apt.plugins import host

    told = host.diagnoses(hook, **facts)
    return [PluginCheck(str(d.check), bool(d.ok), str(d.message), str(d.hint)) for d in told]
