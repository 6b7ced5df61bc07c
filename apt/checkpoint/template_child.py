"""Renders a chat template given as JSON on stdin, and answers as JSON on stdout.

Runs as a program in a process of its own; imports nothing of this package, so that it starts at once.
"""

import json
import sys
from typing import Any, Final

_MEMORY_BYTES: Final = 512 << 20
#: So much of what a template gives is told.
_EXAMPLE_CHARACTERS: Final = 400
#: So much all conversations together may give.
_TEXT_CHARACTERS: Final = 1 << 20
_USER: Final = {"role": "user", "content": "Hello, 你好 🙂"}
_ASSISTANT: Final = {"role": "assistant", "content": "再见 👋"}
_SYSTEM: Final = {"role": "system", "content": "You are kind."}


def limit(cpu_seconds: int) -> None:
    """Bound this process's time and memory, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's patience is the only bound
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


def environment() -> Any:
    """Return a sandbox with the names and tags that transformers gives to templates."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``: marks what the assistant says, for training; it is written as it is."""

        tags = {"generation"}  # noqa: RUF012  # as the base class has it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    found.filters["tojson"] = to_json
    found.globals["raise_exception"] = refuse
    found.globals["strftime_now"] = lambda form: "2026-01-01"
    return found


def answer(template: str, special: dict[str, str]) -> dict[str, Any]:
    """Render three conversations; the first that fails tells the problem."""
    told: dict[str, Any] = {"renders": None, "takes_system": None, "problem": "", "example": ""}
    try:
        sandbox = environment()
    except ImportError:
        return {**told, "problem": "not tried: jinja2 is not installed"}
    try:
        compiled = sandbox.from_string(template)
        text = _render(compiled, [_USER], special)
        told["example"] = text[:_EXAMPLE_CHARACTERS]
        _render(compiled, [_USER, _ASSISTANT, _USER], special)
        if _USER["content"] not in text:
            return {**told, "renders": False, "problem": "the user's message is not in the rendered text"}
        told["renders"] = True
    except MemoryError:
        return {**told, "renders": False, "problem": "it needs more memory than a template may"}
    except Exception as error:  # a template can raise anything
        line = getattr(error, "lineno", None)
        kind = f"line {line}" if line else type(error).__name__
        return {**told, "renders": False, "problem": f"{kind}: {str(error)[:300]}"}
    try:
        told["takes_system"] = _SYSTEM["content"] in _render(compiled, [_SYSTEM, _USER], special)
    except Exception:  # refusing a system message is a template's right
        told["takes_system"] = False
    return told


def rendered(template: str, special: dict[str, str], conversations: list[Any]) -> dict[str, Any]:
    """Render each conversation; no text at all when one of them fails or takes far more room than what it says."""
    try:
        compiled = environment().from_string(template)
        texts = [_render(compiled, messages, special) for messages in conversations]
    except Exception:  # a template can raise anything, memory's end included
        return {"texts": None}
    return {"texts": texts if sum(map(len, texts)) <= _TEXT_CHARACTERS else None}


def _render(compiled: Any, messages: list[dict[str, str]], special: dict[str, str]) -> str:
    return str(compiled.render(messages=messages, add_generation_prompt=True, **special))


def main() -> None:
    """Read, render, answer."""
    limit(int(sys.argv[1]))
    given = json.loads(sys.stdin.buffer.read())
    if given["conversations"] is None:
        told = answer(given["template"], given["special"])
    else:
        told = rendered(given["template"], given["special"], given["conversations"])
    sys.stdout.buffer.write(json.dumps(told).encode())


if __name__ == "__main__":
    main()
