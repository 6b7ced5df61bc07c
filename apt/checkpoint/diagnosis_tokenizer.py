"""The tokenizer against the embedding, special ids against one another, and the chat template."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from apt.checkpoint.findings import Finding, error, note, warning
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint, read_json
from apt.checkpoint.tokenizer_facts import TokenizerFacts, chat_template, read_tokenizer
from apt.console.errors import UnsupportedError

_ROLES: Final = ("bos", "eos", "pad")

#: Messages that every template should render.
_MESSAGES: Final = [{"role": "user", "content": "Hello, 你好 🙂"}]


def token_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Ids that have no row in the embedding, and special tokens that the files do not agree on."""
    tokenizer = read_tokenizer(checkpoint.path)
    rows = _embedding_rows(checkpoint)
    if tokenizer is None:
        yield warning(
            "no-tokenizer", checkpoint.path.name, "the directory has no tokenizer files", "they were not copied",
            "copy tokenizer.json and tokenizer_config.json of the original model beside the weights",
        )  # fmt: skip
    elif rows is not None and tokenizer.highest_id is not None and tokenizer.highest_id >= rows:
        yield error(
            "vocabulary", "tokenizer.json",
            f"has token ids up to {tokenizer.highest_id}, the embedding has {rows} rows",
            "tokens were added without resizing the embedding, or it is another model's tokenizer",
            "copy the tokenizer that belongs to these weights",
        )  # fmt: skip
    generation = checkpoint.path / "generation_config.json"
    files = {"config.json": checkpoint.config}
    if generation.is_file():
        files["generation_config.json"] = read_json(generation)
    limit = rows if rows is not None else checkpoint.config.get("vocab_size")
    for name, config in files.items():
        yield from _id_findings(name, config, limit if isinstance(limit, int) else None, tokenizer)


def _id_findings(
    name: str, config: Mapping[str, Any], limit: int | None, tokenizer: TokenizerFacts | None
) -> Iterator[Finding]:
    for role in _ROLES:
        key = f"{role}_token_id"
        value = config.get(key)
        ids = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int]
        outside = [n for n in ids if n < 0 or (limit is not None and n >= limit)]
        if role == "pad" and outside == [-1]:
            continue  # Llama's original configs mark "no padding" so
        if outside:
            yield error(
                "special-id", f"{name}: {key}", f"{outside[0]} is outside the vocabulary of {limit} tokens",
                "the config was written for another tokenizer", f'set "{key}" to the id that the tokenizer gives',
            )  # fmt: skip
        own = tokenizer.special_ids.get(role) if tokenizer is not None else None
        if ids and own is not None and own not in ids and not outside:
            assert tokenizer is not None
            consequence = "generation would not stop where the tokenizer ends a text" if role == "eos" else ""
            yield (warning if role == "eos" else note)(
                "special-id-differs", f"{name}: {key}",
                f"is {ids if len(ids) > 1 else ids[0]}, the tokenizer's {role} {tokenizer.special[role]!r} is {own}",
                consequence or "the files were edited apart", f'set "{key}" to {own} if the tokenizer is right',
            )  # fmt: skip


def template_findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """A chat template that cannot be rendered."""
    template = chat_template(checkpoint.path)
    if template is None:
        return
    problem = render_problem(template, read_tokenizer(checkpoint.path))
    if problem:
        where = (
            "chat_template.jinja" if (checkpoint.path / "chat_template.jinja").is_file() else "tokenizer_config.json"
        )
        yield error(
            "chat-template", where, problem, "the template was edited or cut", "copy the original model's template"
        )


def render_problem(template: str, tokenizer: TokenizerFacts | None) -> str:
    """Render a template with one user's message; return what goes wrong, "" when nothing does.

    Jinja2 comes with torch; where it is missing nothing is said.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.exceptions import SecurityError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        return ""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **_: str(value)
    special = {f"{role}_token": text for role, text in (tokenizer.special if tokenizer else {}).items()}
    try:
        environment.from_string(template).render(
            messages=_MESSAGES,
            add_generation_prompt=True,
            raise_exception=refuse,
            strftime_now=lambda form: "2026-01-01",
            **special,
        )
    except (TemplateError, SecurityError, TypeError, ValueError, LookupError, AttributeError) as problem:
        line = getattr(problem, "lineno", None)
        return f"line {line}: {problem}" if line else f"{type(problem).__name__}: {problem}"
    return ""


def gguf_token_findings(file: GGUFFile) -> Iterator[Finding]:
    """The same for the metadata of a GGUF."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    embedding = file.tensors.get("token_embd.weight")
    if not isinstance(tokens, list):
        yield warning(
            "no-tokenizer", file.path.name, "the file holds no token list", "written without a vocabulary",
            "export it again from the checkpoint: apt_model ollama export MODEL -o DIR",
        )  # fmt: skip
        return
    rows = embedding.shape[0] if embedding is not None else len(tokens)
    if len(tokens) > rows:
        yield error(
            "vocabulary", "tokenizer.ggml.tokens", f"{len(tokens)} tokens, the embedding has {rows} rows",
            "it is another model's tokenizer", "export it again from the checkpoint",
        )  # fmt: skip
    for name in ("bos", "eos", "padding", "unknown"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = file.metadata.get(key)
        if isinstance(value, int) and not 0 <= value < rows:
            yield error(
                "special-id", key, f"{value} is outside the vocabulary of {rows} tokens",
                "it was written for another tokenizer", "export it again from the checkpoint",
            )  # fmt: skip


def _embedding_rows(checkpoint: Checkpoint) -> int | None:
    try:
        name = checkpoint.architecture.embedding
    except UnsupportedError:
        return None
    tensor = checkpoint.tensors.get(name)
    return tensor.shape[0] if tensor is not None and tensor.shape else None
