"""The commands ``apt_model ollama export`` and ``apt_model ollama verify``."""

from pathlib import Path
from typing import Annotated

import typer

from apt.console import output
from apt.console.completes import Completes
from apt.console.errors import NotFoundError, UsageError
from apt.console.typer_options import DryRunOption, JsonOption, OverwriteOption, QuietOption

app = typer.Typer(no_args_is_help=True, help="Export to GGUF with a Modelfile for Ollama, and verify the result.")

ModelArgument = Annotated[
    str, typer.Argument(help="A path, a name in the store, hf:owner/name, or tiny."), Completes("model")
]


@app.command("export")
@output.emits("apt.plugins.builtin.ollama.results:ExportResult")
def export(
    model: ModelArgument,
    output_path: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory that appears, whole or not at all."),
        Completes("directory"),
    ],
    type_: Annotated[
        str, typer.Option("--type", help="q8_0, f16, bf16 or f32."), Completes("choices:q8_0,f16,bf16,f32")
    ] = "q8_0",
    name: Annotated[str, typer.Option(help="Name of the GGUF file; the model's name when absent.")] = "",
    modelfile: Annotated[
        Path | None, typer.Option(help="Take this Modelfile; {gguf} in it stands for the file's name.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Write DIR/NAME.gguf and DIR/Modelfile of a Llama, Mistral or Qwen checkpoint.

    What llama.cpp would compute or tokenize otherwise than transformers is refused, with the reason. Matrices that
    the type cannot hold stay f16 (or f32) and are listed. Exit codes: 4 bad input, 5 not covered, 7 DIR exists.

    Examples:
        apt_model ollama export tiny -o ./tiny-ollama

        apt_model ollama export ./model -o ./out --type f16 --name my-model --json

        ollama create my-model -f ./out/Modelfile
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.ollama.export import export_gguf, plan_export
    from apt.plugins.builtin.ollama.options import ExportOptions

    options = ExportOptions.of_command(
        model=model,
        output=output_path,
        type=type_,
        name=name,
        modelfile_template=_read_text(modelfile) if modelfile else "",
        overwrite=overwrite,
    )
    output.emit(plan_export(options) if dry_run else export_gguf(options))


@app.command("verify")
@output.emits("apt.plugins.builtin.ollama.results:VerifyResult")
def verify(
    gguf: Annotated[Path, typer.Argument(help="The GGUF file, or the directory that the export wrote.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="The checkpoint that it was made of."), Completes("model")
    ],
    text: Annotated[
        str,
        typer.Option(help="Held-out text: embedded, self (sampled from the model), .txt, .jsonl or .npz."),
        Completes("choices:embedded,self", "file"),
    ] = "",
    tokens: Annotated[int, typer.Option(help="Tokens that predictions are compared on, at least.")] = 2048,
    llama_cpp: Annotated[
        str,
        typer.Option(help="Run it in llama.cpp: auto (where xllamacpp is installed), require or skip."),
        Completes("choices:auto,require,skip"),
    ] = "auto",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Prove a GGUF: every tensor and metadata value, and its tokens and predictions in llama.cpp.

    f16 and f32: greedy text equals the checkpoint's. Every type: mean KL at most 0.005 nats, the same top token for
    at least 98.5 % of the tokens, perplexity within 1 %. Exit codes: 10 a check failed, 6 llama.cpp is missing.

    Examples:
        apt_model ollama verify ./tiny-ollama --model tiny

        apt_model ollama verify ./out/my-model.gguf -m ./model --text heldout.txt --json
    """
    output.configure(json=json, quiet=quiet)
    from apt.plugins.builtin.ollama.options import VerifyOptions
    from apt.plugins.builtin.ollama.verify import verify_gguf

    options = VerifyOptions.of_command(
        gguf=gguf,
        model=model,
        text=text or ("embedded" if model == "tiny" else None),
        tokens=tokens,
        llama_cpp=llama_cpp,
    )
    output.emit(verify_gguf(options))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"no such Modelfile: {path}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: a Modelfile must be UTF-8 text") from None
