"""What the figures of a page depend on beside the models: versions and the machine."""

import importlib.metadata
import platform


def version_facts() -> dict[str, str]:
    """Return the versions of torch, transformers and Python, and the machine; what is not installed is left out."""
    found = {}
    for name in ("torch", "transformers"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | {"Python": f"{platform.python_version()}, {platform.machine()}"}
