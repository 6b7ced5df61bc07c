"""The library behind the command ``apt_model``; importing it imports nothing else."""

import os


def language() -> str:
    """Return the language of what people read: ``"en"`` or ``"zh-CN"``.

    ``APT_LANG`` decides; without it the locale does: the first of ``LC_ALL``, ``LC_MESSAGES`` and ``LANG`` that is
    set. It stands here, because the fast path has imported this package anyway and may import nothing more.
    """
    chosen = os.environ.get("APT_LANG") or os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES")
    chosen = chosen or os.environ.get("LANG") or ""
    return "zh-CN" if chosen[:2].lower() == "zh" else "en"
