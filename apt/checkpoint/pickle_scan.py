"""What a pickled checkpoint would do and holds, read from its opcodes: nothing is unpickled, nothing is imported.

``torch.save`` writes a zip archive with one pickle, ``data.pkl``; before torch 1.6 it wrote pickles one after another
with the storages behind them. Either way the tensors' names and shapes stand in the pickle as arguments of
``torch._utils._rebuild_tensor_v2``. A small machine runs the opcodes on inert values: a global is its name, a call is
the name and the arguments. Formats: Python's ``pickletools``; torch's ``serialization.py``.
"""

import io
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from apt.console.errors import AptError, BadInputError, first_line

#: More of a pickle than this is not read; that of a model of a thousand layers takes some 2 MiB.
MAX_PICKLE_BYTES: Final = 32 << 20
#: More opcodes than this are not followed, so that a hostile file costs bounded time.
MAX_OPCODES: Final = 1_000_000

#: What a checkpoint of tensors needs; whatever else a pickle imports runs when it is loaded.
HARMLESS: Final = frozenset({
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter", "torch.Size", "torch.serialization._get_layout", "builtins.set",
    "__builtin__.set", "torch.device", "_codecs.encode",
})  # fmt: skip
_STORAGE_DTYPES: Final = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
#: Opcodes by which a pickle runs code.
_RUNNING: Final = (
    "GLOBAL",
    "STACK_GLOBAL",
    "INST",
    "OBJ",
    "REDUCE",
    "NEWOBJ",
    "NEWOBJ_EX",
    "BUILD",
    "EXT1",
    "EXT2",
    "EXT4",
)
#: Pickles of one archive that are followed; one that torch wrote has one.
_MOST_MEMBERS: Final = 16
#: What lies deeper than so long a name is no tensor of a model.
_LONGEST_NAME: Final = 4096
_LEGACY_PICKLES: Final = 5  # magic number, protocol, system, the object, storage keys


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor by the arguments that would rebuild it.

    :param storage: name of its storage and its offset in it; ``""`` where the pickle does not say.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: str

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class PickleScan:
    """A pickled file by its opcodes.

    :param container: ``zip`` (torch 1.6 and later), ``legacy`` (before) or ``pickle`` (no checkpoint of torch).
    :param imports: what loading it would import, sorted; ``unexpected_imports`` are those that no checkpoint of
        tensors needs.
    :param running_opcodes: how often each opcode occurs that imports or calls something.
    :param complete: whether all of it was followed; without it, tensors may be missing from the list.
    """

    path: Path
    size_bytes: int
    container: str
    imports: tuple[str, ...]
    unexpected_imports: tuple[str, ...]
    running_opcodes: dict[str, int]
    tensors: tuple[PickledTensor, ...]
    complete: bool


def scan_pickle(path: Path) -> PickleScan:
    """Scan a pickled file.

    :raises BadInputError: when it is neither a zip archive with a pickle nor a pickle.
    """
    import warnings
    import zipfile  # like pickletools, for the few files that are pickles

    machine = _Machine()
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in texts that are no Python
            container = _run(machine, stream)
    except AptError:
        raise
    except (ValueError, KeyError, IndexError, EOFError, OverflowError, UnicodeError, MemoryError) as error:
        raise BadInputError(f"{path}: not a pickle that can be followed: {first_line(error)}") from None
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise BadInputError(f"{path}: not a readable archive: {first_line(error)}") from None
    imports = tuple(sorted(machine.imports))
    return PickleScan(
        path=path,
        size_bytes=path.stat().st_size,
        container=container,
        imports=imports,
        unexpected_imports=tuple(name for name in imports if not _is_harmless(name)),
        running_opcodes={name: machine.opcodes[name] for name in _RUNNING if machine.opcodes[name]},
        tensors=tuple(_tensors(machine.result)),
        complete=machine.complete,
    )


def _is_harmless(name: str) -> bool:
    module, _, last = name.rpartition(".")
    return name in HARMLESS or (module == "torch" and (last in _STORAGE_DTYPES or last.startswith(("float", "bfloat"))))


def _run(machine: "_Machine", stream: BinaryIO) -> str:
    import zipfile

    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            names = [n for n in archive.namelist() if n == "data.pkl" or n.endswith("/data.pkl")]
            if not names:
                raise BadInputError(f"{stream.name}: an archive without data.pkl is no checkpoint of torch")
            # torch takes the one beside the archive's first entry; whichever it is, what it imports is told.
            for name in reversed(names[:_MOST_MEMBERS]):
                with archive.open(name) as member:
                    data = member.read(MAX_PICKLE_BYTES + 1)
                machine.run(io.BytesIO(data[:MAX_PICKLE_BYTES]))
                machine.complete &= len(data) <= MAX_PICKLE_BYTES
        machine.complete &= len(names) <= _MOST_MEMBERS
        return "zip"
    stream.seek(0)
    rest = io.BytesIO(stream.read(MAX_PICKLE_BYTES))
    machine.run(rest)
    if machine.result != 0x1950A86A20F9469CFC6C:  # torch's magic number
        return "pickle"
    for place in range(1, _LEGACY_PICKLES):
        machine.run(rest)
        if place == _LEGACY_PICKLES - 2:
            saved = machine.result
    machine.result = saved
    return "legacy"


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Call:
    target: Any
    arguments: Any


@dataclass(frozen=True, slots=True)
class _Storage:
    """What a persistent id stands for."""

    key: Any


class _Mark:
    pass


class _Machine:
    """Follows opcodes on inert values; one for all pickles of a file."""

    def __init__(self) -> None:
        self.imports: set[str] = set()
        self.opcodes: Counter[str] = Counter()
        self.result: Any = None
        self.complete = True

    def run(self, stream: io.BytesIO) -> None:
        """Follow one pickle to its STOP."""
        import pickletools

        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            self.opcodes[opcode.name] += 1
            if self.opcodes.total() > MAX_OPCODES:
                self.complete = False
                break
            self._step(opcode.name, argument)
        if self.complete and (not self._stack or isinstance(self._stack[-1], _Mark)):
            raise ValueError("it ends without a value")
        self.result = self._stack[-1] if self._stack else None

    def _step(self, name: str, argument: Any) -> None:
        if name in ("GLOBAL", "INST"):
            self._import(str(argument).replace(" ", "."))
        elif name == "STACK_GLOBAL":
            attribute, module = self._stack.pop(), self._stack.pop()
            self._import(f"{module}.{attribute}")
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _PUSHED:
            self._stack.append(argument)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(argument)])
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self._stack) < count:
                raise ValueError("a tuple of more values than there are")
            self._stack[len(self._stack) - count :] = [tuple(self._stack[len(self._stack) - count :])]
        else:
            self._build(name)

    def _build(self, name: str) -> None:
        if name == "TUPLE":
            items = self._marked()
            self._stack.append(tuple(items))
        elif name in ("LIST", "DICT", "FROZENSET"):
            items = self._marked()
            self._stack.append(_pairs(items) if name == "DICT" else items)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, target = self._stack.pop(), self._stack.pop()
            self._stack.append({} if target == _Global("collections.OrderedDict") else _Call(target, arguments))
        elif name in ("SETITEM", "SETITEMS"):
            items = self._marked() if name == "SETITEMS" else [self._stack.pop() for _ in range(2)][::-1]
            if isinstance(self._stack[-1], dict):
                self._stack[-1].update(_pairs(items))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [self._stack.pop()] if name == "APPEND" else self._marked()
            if isinstance(self._stack[-1], list):
                self._stack[-1].extend(items)
        elif name == "BINPERSID":
            self._stack.append(_Storage(self._stack.pop()))
        elif name in ("BUILD", "POP"):
            self._stack.pop()
        elif name == "DUP":
            self._stack.append(self._stack[-1])
        elif name == "OBJ":
            items = self._marked()
            self._stack.append(_Call(items[:1], items[1:]))
        elif name == "NEWOBJ_EX":
            self._stack[-3:] = [_Call(self._stack[-3], self._stack[-2])]
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise ValueError(f"the opcode {name} has no place in a checkpoint")

    def _import(self, name: str) -> None:
        self.imports.add(name)
        self._stack.append(_Global(name))

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark, and the mark."""
        items = []
        while not isinstance(top := self._stack.pop(), _Mark):
            items.append(top)
        return items[::-1]


_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTANTS: Final[dict[str, Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list, "MARK": _Mark,
}  # fmt: skip
_PUSHED: Final = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8", "PERSID",
})  # fmt: skip


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Pair keys and values; a key that cannot be one is shown as text."""
    keys = [k if isinstance(k, (str, int, float, bytes, bool)) or k is None else repr(type(k)) for k in items[::2]]
    return dict(zip(keys, items[1::2], strict=True))


def _tensors(value: Any) -> Iterator[PickledTensor]:
    """Yield the tensors of nested dicts and lists, named by their keys joined by dots; each container once.

    A tensor on the same storage as an earlier one of the same shape is that one again (a tied head), and left out.
    """
    seen: set[int] = set()
    views: set[tuple[str, tuple[int, ...]]] = set()
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, entry = waiting.pop()
        if isinstance(entry, _Call):
            tensor = _rebuilt(entry, name)
            view = (tensor.storage, tensor.shape) if tensor is not None else ("", ())
            if tensor is not None and (not tensor.storage or view not in views):
                views.add(view)
                yield tensor
        elif isinstance(entry, (dict, list)) and id(entry) not in seen:
            seen.add(id(entry))
            if len(name) > _LONGEST_NAME:
                continue
            entries = entry.items() if isinstance(entry, dict) else enumerate(entry)
            waiting += [(f"{name}.{key}" if name else str(key), inner) for key, inner in entries][::-1]


def _rebuilt(call: _Call, name: str) -> PickledTensor | None:
    target = call.target.name if isinstance(call.target, _Global) else ""
    arguments = call.arguments if isinstance(call.arguments, tuple) else ()
    if target == "torch._utils._rebuild_parameter" and arguments and isinstance(arguments[0], _Call):
        return _rebuilt(arguments[0], name)
    if not target.startswith("torch._utils._rebuild_tensor") or len(arguments) < 4:
        return None
    storage, offset, shape = arguments[:3]
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        return None
    # A storage's persistent id: ("storage", its type, its name, device, elements).
    key = storage.key if isinstance(storage, _Storage) and isinstance(storage.key, tuple) else ()
    kind = key[1].name.rpartition(".")[2] if len(key) > 1 and isinstance(key[1], _Global) else ""
    place = f"{key[2]}:{offset}" if len(key) > 2 and isinstance(key[2], str) and type(offset) is int else ""
    return PickledTensor(name, _STORAGE_DTYPES.get(kind, "unknown"), shape, place)
