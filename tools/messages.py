"""Keep the catalogues of messages in step with the source.

    python tools/messages.py --check            # exit 1, naming each message that is not translated or not used
    python tools/messages.py --missing          # the missing ones as JSON lines, ready to be filled in
    python tools/messages.py --merge FILE …     # take filled-in lines over, sorted; unused entries are dropped
    python tools/messages.py --list             # every message and where it stands

A line to fill in is ``{"message": "no plugin is called {name!r}", "zh-CN": "", "at": "apt/plugins/records.py:124"}``.
Leave out the translation of what is shown to nobody and give ``"not_shown": true`` instead.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from message_templates import ROOT, canonical, extract, placeholders

from apt.console import catalogue

LANGUAGE: Final = "zh-CN"

#: What the search by words finds although nobody is shown it, a line each.
NOT_SHOWN: Final = ROOT / "tools" / "not_messages.txt"

#: Messages of libraries that reach people through us, and words of ours that a type, not a text, holds.
OTHERS: Final = ROOT / "tools" / "other_messages.txt"


def lines(path: Path) -> list[str]:
    """Return the lines of a list; those that begin with ``#`` are comments."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


def messages() -> dict[str, list[str]]:
    """Return every message that has to be in the catalogue, and where it stands."""
    hidden = {canonical(line) for line in lines(NOT_SHOWN)}
    found = {t: places for t, places in extract().items() if canonical(t) not in hidden}
    for line in lines(OTHERS):
        found.setdefault(line, [OTHERS.relative_to(ROOT).as_posix()])
    unique: dict[str, tuple[str, list[str]]] = {}
    for template, places in found.items():
        kept = unique.setdefault(canonical(template), (template, []))
        kept[1].extend(places)
    return dict(unique.values())


def entries() -> dict[str, str]:
    """Return the catalogue as it is."""
    path = catalogue.path(LANGUAGE)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def write(found: dict[str, str]) -> None:
    """Write the catalogue, sorted, one entry a line."""
    path = catalogue.path(LANGUAGE)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, ensure_ascii=False, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def missing(wanted: dict[str, list[str]], known: dict[str, str]) -> dict[str, list[str]]:
    """Return the messages without a translation."""
    have = {canonical(k) for k, v in known.items() if v}
    return {t: places for t, places in wanted.items() if canonical(t) not in have}


def unused(wanted: dict[str, list[str]], known: dict[str, str]) -> list[str]:
    """Return the entries whose message is no longer in the source."""
    have = {canonical(t) for t in wanted}
    return [k for k in known if canonical(k) not in have]


def disagreeing(known: dict[str, str]) -> list[str]:
    """Return the entries whose translation does not use just the values of its message, each once."""
    return [k for k, v in known.items() if sorted(placeholders(k)) != sorted(placeholders(v))]


def check(wanted: dict[str, list[str]], known: dict[str, str]) -> list[str]:
    """Return what is wrong, a line each."""
    return [
        *(f"{places[0]}: not translated: {t}" for t, places in missing(wanted, known).items()),
        *(f"not used: {k}" for k in unused(wanted, known)),
        *(f"the values differ: {k}" for k in disagreeing(known)),
    ]


def merge(paths: list[Path], wanted: dict[str, list[str]]) -> None:
    """Take filled-in lines over into the catalogue and the list of what is not shown."""
    found, hidden = entries(), set(lines(NOT_SHOWN))
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line) if line.strip() else {}
            if entry.get("not_shown"):
                hidden.add(entry["message"])
            elif entry.get(LANGUAGE):
                found = {k: v for k, v in found.items() if canonical(k) != canonical(entry["message"])}
                found[entry["message"]] = entry[LANGUAGE]
    present = {canonical(t) for t in extract()}
    head = [line for line in NOT_SHOWN.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    kept = sorted(line for line in hidden if canonical(line) in present)
    NOT_SHOWN.write_text("\n".join([*head, *kept]) + "\n", encoding="utf-8")
    gone = set(unused(messages(), found))
    write({k: v for k, v in found.items() if k not in gone})


def main() -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    for name in ("--check", "--missing", "--list"):
        action.add_argument(name, action="store_true")
    action.add_argument("--merge", nargs="+", type=Path, metavar="FILE")
    asked = parser.parse_args()
    wanted = messages()
    if asked.merge:
        merge(asked.merge, wanted)
        return 0
    known = entries()
    if asked.list:
        print("\n".join(f"{', '.join(places)}: {t}" for t, places in wanted.items()))
        return 0
    if asked.missing:
        for template, places in missing(wanted, known).items():
            print(json.dumps({"message": template, LANGUAGE: "", "at": places[0]}, ensure_ascii=False))
        return 0
    faults = check(wanted, known)
    print("\n".join(faults) if faults else f"in step: {len(wanted)} messages")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
