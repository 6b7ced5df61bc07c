"""The environment variables of the reference, and finding those that the code reads."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Variables that the code itself reads.
READ: Final = {
    "APT_HOME": "Directory of the store, the plugins and what is disabled; `~/.apt_model` when absent.",
    "APT_NO_CACHE": "Any value: the index of plugins is built at every start and not kept.",
    "APT_SAFE_MODE": "Any value: plugins of others are left out, as by `apt_model --safe-mode`.",
    "APT_PLUGIN_INDEX": "The curated index that `plugin search` and `plugin install` ask when `--index` names none.",
    "APT_LANG": "Language of messages, tables and help: `en` or `zh-CN`; that of the locale when absent.",
    "LC_ALL": "The locale, which chooses the language where `APT_LANG` does not: Chinese when it begins with `zh`.",
    "LC_MESSAGES": "The same, where `LC_ALL` is absent.",
    "LANG": "The same, where `LC_MESSAGES` is absent too.",
    "APT_DEBUG": "Any value: an error is shown with its traceback.",
    "SHELL": "The shell that `apt_model completion` means when it names none.",
    "XDG_DATA_HOME": "Where bash looks for completion scripts; `~/.local/share` when absent.",
    "XDG_CONFIG_HOME": "Where fish looks for completion scripts; `~/.config` when absent.",
    "HF_ENDPOINT": "The Hub; `https://huggingface.co` when absent.",
    "HF_HUB_OFFLINE": "`1`, `ON`, `YES` or `TRUE`: no Hub is asked; models come from its cache.",
    "HF_HUB_CACHE": "The Hub's cache; `$HF_HOME/hub` when absent.",
    "OLLAMA_MODELS": "Directory of Ollama's models, which `list` shows; `~/.ollama/models` when absent.",
    "HF_HOME": "Directory of Hugging Face's files; `$XDG_CACHE_HOME/huggingface` when absent.",
    "XDG_CACHE_HOME": "Directory of caches, of which the index of plugins is one; `~/.cache` when absent.",
    "NO_COLOR": "Any value: neither colour nor animation.",
    "TERM": "`dumb`: neither colour nor animation.",
    "OMP_NUM_THREADS": "Threads of one of torch's operations; all cores when absent. `debug` tells of too many.",
    "TRANSFORMERS_OFFLINE": "transformers: no Hub is asked; `debug` tells when it is set.",
    "RANK": "Number of a process, set by torchrun: only the first one prints and writes.",
    "TORCHELASTIC_RUN_ID": "A job of torchrun, set by it: operations that one process does are refused in several.",
    "WORLD_SIZE": "Number of processes, set by torchrun.",
    "WANDB_API_KEY": "The key of W&B: with one, `tracking.wandb_mode` is online by default. It is never written down.",
    "WANDB_IDENTITY_TOKEN_FILE": "Another way to sign in to W&B; counts as a key.",
    "WANDB_BASE_URL": "The server of W&B; `https://api.wandb.ai` when absent.",
    "NETRC": "The file in which a key of W&B is looked for; `~/.netrc` when absent.",
    "LC_CTYPE": "The locale of characters; `debug` tells when it is not installed.",
    "OMP_WAIT_POLICY": "How OpenMP's threads wait; set to `PASSIVE` when absent, since spinning threads take the cores "
    "from others.",
}

#: Variables that libraries read, and which.
OF_LIBRARIES: Final = {
    "HF_TOKEN": "huggingface_hub: the token of the Hub, in place of that of `hf auth login`.",
    "MODELSCOPE_API_TOKEN": "modelscope: the token of ModelScope.",
    "MODELSCOPE_ENDPOINT": "modelscope: the address of ModelScope.",
    "HTTPS_PROXY": "huggingface_hub and pip: the proxy.",
}


def read_in(*directories: Path) -> dict[str, list[str]]:
    """Return the variables that the code below directories reads, each with the places."""
    found: dict[str, list[str]] = {}
    for directory in directories:
        for path in sorted(directory.rglob("*.py")):
            for line, name in reads(path.read_text(encoding="utf-8")):
                found.setdefault(name, []).append(f"{path.relative_to(directory.parent)}:{line}")
    return found


def reads(source: str) -> Iterator[tuple[int, str]]:
    """Find every read of an environment variable in Python source: its line, and its name or ``"?"``."""
    for node in ast.walk(ast.parse(source)):
        name: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            of, method = ast.unparse(node.func.value), node.func.attr
            if (of in ("os.environ", "environ") and method in ("get", "setdefault", "pop")) or method == "getenv":
                name = node.args[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getenv" and node.args:
            name = node.args[0]
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            if ast.unparse(node.value) in ("os.environ", "environ"):
                name = node.slice
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) in ("os.environ", "environ"):
            name = node.left
        if name is not None:
            yield node.lineno, name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "?"


def faults(read: dict[str, list[str]]) -> list[str]:
    """Say what the description lacks, and what it tells that is no longer so."""
    return [
        *(
            f"{name} is read at {', '.join(where)} but not described"
            for name, where in read.items()
            if name not in READ
        ),
        *(f"{name} is described but nowhere read" for name in READ if name not in read),
    ]
