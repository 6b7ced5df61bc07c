"""``apt_model test``: is a model whole, does it run, how well does it predict."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apt.cli.arguments import BatchRowsOption, MaxRowsOption, ModelArgument, WindowOption
from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import ExitCode
from apt.console.typer_options import JsonOption, QuietOption

if TYPE_CHECKING:
    from apt.evaluation.behaviour import Check


@output.emits("apt.evaluation.results:TestResult")
def test(
    model: ModelArgument,
    text: Annotated[
        str,
        typer.Option(help="embedded, self (the model's own text), none, or a .txt, .jsonl or .npz file."),
        Completes("choices:embedded,self,none", "file"),
    ] = "embedded",
    max_rows: MaxRowsOption = None,
    window: WindowOption = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 32,
    batch_rows: BatchRowsOption = 8,
    task: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A .jsonl of items to answer; may be given again.", show_default=False),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="An earlier result (--json): fail when a figure is worse.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Check that a model is whole and runs, and measure its perplexity with a 95 % interval.

    Files and checksums, tensors against the config, special tokens, finite weights and logits, generation,
    determinism, decoding with the KV cache against a full pass, batches and padding, the end of generation, the
    tokenizer's round trip, the chat template. On the model's own text the perplexity tells agreement with itself, not
    quality.

    --task answers multiple choice, cloze or exact-match items from a local file; docs/evaluation.md has the format.
    --baseline compares with an earlier result, item by item where the items are the same, and says what fell by more
    than noise.

    \b
    Examples:
      apt_model test tiny
      apt_model test ./my-model --text heldout.txt --json
      apt_model test my-model --text none --task questions.jsonl
      apt_model test my-model --baseline before.json

    \b
    Exit codes: 0 passed, 2 wrong call, 3 no such model, text, task or baseline, 4 corrupted files, 5 not supported
    (GGUF), 10 a check failed or a figure is worse than the baseline's.
    """
    output.configure(json=json, quiet=quiet)
    from apt.evaluation.operations import TestOptions, check

    result = check(
        TestOptions(
            model=model,
            text=None if text == "none" else text,
            window=window,
            max_rows=max_rows,
            new_tokens=new_tokens,
            batch_rows=batch_rows,
            tasks=tuple(task or ()),
            baseline=baseline,
        ),
        more_checks=_plugin_checks,
    )
    output.emit(result)
    if result.passed:
        return ExitCode.OK
    if result.failed:
        output.warn(f"{result.name} failed: {', '.join(c.name for c in result.failed)}; see: apt_model debug {model}")
    if result.fell:
        output.warn(f"{result.name} is worse than {baseline}: {', '.join(result.fell)}")
    return ExitCode.CHECK_FAILED


def _plugin_checks(model: Path) -> "list[Check]":
    """Ask the plugins that check models."""
    from apt.evaluation.behaviour import Check
    from apt.plugins import host

    told = host.diagnoses("model_checks", model=model)
    return [Check(str(d.check), bool(d.ok), str(d.message)) for d in told]
