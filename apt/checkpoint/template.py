"""Whether a chat template renders: tried in a child process that may neither run long nor grow.

Templates come with models from anywhere. Jinja's sandbox keeps a template from Python's objects, but not from
looping for ever or from building a string of gigabytes; the child's limits do.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

MAX_TEMPLATE_CHARACTERS: Final = 1 << 20
#: A template needs milliseconds; the child may use so many seconds of CPU, the parent waits a little longer.
CPU_SECONDS: Final = 2
WAIT_SECONDS: Final = 20


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """A chat template, tried.

    :param renders: whether a conversation of a user and an assistant renders with what the user says; ``None`` where it
        could not be tried.
    :param takes_system: whether one that begins with a system message does.
    :param problem: why it does not render, or was not tried; ``""`` when it renders.
    :param example: the beginning of what one message of a user gives.
    """

    characters: int
    renders: bool | None
    takes_system: bool | None
    problem: str
    example: str


def try_template(template: str, special: Mapping[str, str]) -> TemplateFacts:
    """Render a template in a child process, in Chinese and with an emoji.

    :param special: the tokenizer's special tokens by role, see :class:`apt.checkpoint.tokenizer_facts.TokenizerFacts`.
    """
    size = len(template)
    if size > MAX_TEMPLATE_CHARACTERS:
        return TemplateFacts(size, None, None, f"longer than {MAX_TEMPLATE_CHARACTERS} characters, not tried", "")
    try:
        answer = _child_answer(template, special, None)
    except TimeoutError:
        return TemplateFacts(size, False, None, "it does not come to an end", "")
    except ValueError:
        return TemplateFacts(size, False, None, "it needs more time or memory than a template may", "")
    return TemplateFacts(size, answer["renders"], answer["takes_system"], answer["problem"], answer["example"])


def render_conversations(
    template: str, special: Mapping[str, str], conversations: Sequence[Sequence[Mapping[str, str]]]
) -> list[str] | None:
    """Render conversations, with the opening of the answer to come, in a child process; ``None`` when one does not.

    :param special: as for :func:`try_template`.
    :param conversations: messages with ``role`` and ``content``.
    """
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        return None
    try:
        texts: list[str] | None = _child_answer(template, special, conversations)["texts"]
    except (TimeoutError, ValueError):
        return None
    return texts


def _child_answer(template: str, special: Mapping[str, str], conversations: Any) -> dict[str, Any]:
    """Ask the child.

    :raises TimeoutError: when it does not end; :raises ValueError: when it ends without an answer.
    """
    import subprocess  # few models of those that are read have a template

    roles = {f"{role}_token": text for role, text in special.items()}
    given = {"template": template, "special": roles, "conversations": conversations}
    child = Path(__file__).with_name("template_child.py")
    try:
        ran = subprocess.run(
            [sys.executable, "-P", "-X", "utf8", str(child), str(CPU_SECONDS)],
            input=json.dumps(given).encode(),
            capture_output=True,
            timeout=WAIT_SECONDS,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        raise TimeoutError from None
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer
