"""A process that runs one GGUF in llama.cpp and answers requests; started by :mod:`.llama_cpp`.

Arguments: the shared library, the GGUF, the number of threads. Requests are JSON lines on stdin; an answer is a JSON
line on stdout, for ``logits`` one for each chunk of tokens, followed by the chunk's raw f32. The file imports the
standard library only, so that nothing but llama.cpp lives in the process, and llama.cpp's talk and crashes stay here.

llama.cpp's parameter structs change between versions. Both are larger than 16 bytes, which all 64-bit ABIs pass and
return in memory, so a struct that is declared larger than the real one is safe: the defaults are fetched into such a
buffer, the few fields that matter are found by the pattern of the defaults around them, and what was set is checked
afterwards by llama.cpp's own getters and log.
"""

import ctypes
import json
import os
import struct
import sys
from typing import Any, Final

_BUFFER_BYTES: Final = 4096
#: Tokens whose logits are computed, held and sent at a time.
CHUNK: Final = 128
_F32: Final = 0
_FLASH_ATTENTION_OFF: Final = 0

# llama_context_params: n_ctx, n_batch, n_ubatch, n_seq_max stand first, with these defaults.
_FIRST_FIELDS: Final = struct.pack("<4I", 512, 2048, 512, 1)
# Then, behind fields that come and go: RoPE scaling, pooling, attention and flash attention (-1 each); RoPE base and
# scale (0); four YaRN factors (-1); the YaRN context (0); defragmentation (-1); a callback and its data; the types of
# the K and V cache (f16).
_KNOWN_RUN: Final = struct.pack("<4i2f4fIf2Q2i", *[-1] * 4, 0, 0, *[-1] * 4, 0, -1, 0, 0, 1, 1)
_FLASH_ATTENTION_AT: Final = 12
_CACHE_TYPES_AT: Final = 64


class Opaque(ctypes.Structure):
    """A parameter struct of unknown layout, with room to spare."""

    _fields_ = [("words", ctypes.c_uint64 * (_BUFFER_BYTES // 8))]


class Batch(ctypes.Structure):
    """``llama_batch``."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


class LayoutError(Exception):
    """This build of llama.cpp is not laid out as this file knows it."""


#: Function → (result, arguments).
_SIGNATURES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "llama_backend_init": (None, []),
    "llama_model_default_params": (Opaque, []),
    "llama_context_default_params": (Opaque, []),
    "llama_model_load_from_file": (ctypes.c_void_p, [ctypes.c_char_p, Opaque]),
    "llama_model_get_vocab": (ctypes.c_void_p, [ctypes.c_void_p]),
    "llama_vocab_n_tokens": (ctypes.c_int32, [ctypes.c_void_p]),
    "llama_init_from_model": (ctypes.c_void_p, [ctypes.c_void_p, Opaque]),
    "llama_free": (None, [ctypes.c_void_p]),
    "llama_n_ctx": (ctypes.c_uint32, [ctypes.c_void_p]),
    "llama_n_batch": (ctypes.c_uint32, [ctypes.c_void_p]),
    "llama_n_ubatch": (ctypes.c_uint32, [ctypes.c_void_p]),
    "llama_n_seq_max": (ctypes.c_uint32, [ctypes.c_void_p]),
    "llama_set_n_threads": (None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]),
    "llama_batch_init": (Batch, [ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]),
    "llama_batch_free": (None, [Batch]),
    "llama_decode": (ctypes.c_int32, [ctypes.c_void_p, Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p, ctypes.c_int32]),
    "llama_tokenize": (
        ctypes.c_int32,
        [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_int32,
            ctypes.c_bool,
            ctypes.c_bool,
        ],
    ),
    "llama_sampler_init_greedy": (ctypes.c_void_p, []),
    "llama_sampler_sample": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]),
    "llama_sampler_free": (None, [ctypes.c_void_p]),
}


class Runner:
    """One GGUF in llama.cpp, on the CPU, with an f32 KV cache and plain attention."""

    def __init__(self, library: str, model: str, threads: int) -> None:
        self._library = _bind(library)
        self._threads = threads
        self._library.llama_backend_init()
        params = self._library.llama_model_default_params()
        self._model = self._library.llama_model_load_from_file(os.fsencode(model), params)
        if not self._model:
            raise ValueError("llama.cpp cannot load the file")
        self._vocab = self._library.llama_model_get_vocab(self._model)
        self.vocab_size = int(self._library.llama_vocab_n_tokens(self._vocab))

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text, special tokens added and recognised."""
        raw = text.encode("utf-8")
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self._vocab, raw, len(raw), ids, room, True, True)
        if count < 0:
            raise ValueError(f"llama.cpp needs {-count} tokens for {len(raw)} bytes")
        return list(ids[:count])

    def logits(self, ids: list[int]) -> None:
        """Answer with the logits after every token of one sequence, f32 ``[tokens, vocabulary]``."""
        context = self._context(tokens=len(ids), sequences=1, batch=CHUNK)
        batch = self._library.llama_batch_init(CHUNK, 0, 1)
        try:
            for first in range(0, len(ids), CHUNK):
                last = min(first + CHUNK, len(ids))
                self._decode(context, batch, [(ids[i], i, 0, True) for i in range(first, last)])
                _answer({"tokens": last - first})
                for i in range(last - first):
                    row = self._library.llama_get_logits_ith(context, i)
                    _write_all(ctypes.string_at(row, 4 * self.vocab_size))
        finally:
            self._library.llama_batch_free(batch)
            self._library.llama_free(context)

    def greedy(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Continue prompts of one length greedily, all in one batch; an end-of-sequence token does not stop it."""
        length = len(prompts[0])
        room = len(prompts) * length
        context = self._context(tokens=length + new_tokens, sequences=len(prompts), batch=room)
        batch = self._library.llama_batch_init(room, 0, 1)
        sampler = self._library.llama_sampler_init_greedy()
        generated: list[list[int]] = [[] for _ in prompts]
        try:
            step = [
                (token, at, s, at == length - 1) for s, prompt in enumerate(prompts) for at, token in enumerate(prompt)
            ]
            for count in range(new_tokens):
                self._decode(context, batch, step)
                outputs = [i for i, entry in enumerate(step) if entry[3]]
                for s, i in enumerate(outputs):
                    generated[s].append(self._library.llama_sampler_sample(sampler, context, i))
                step = [(g[-1], length + count, s, True) for s, g in enumerate(generated)]
        finally:
            self._library.llama_sampler_free(sampler)
            self._library.llama_batch_free(batch)
            self._library.llama_free(context)
        return generated

    def _context(self, *, tokens: int, sequences: int, batch: int) -> int:
        """Make a context with room for ``tokens`` in each of ``sequences``."""
        params = self._library.llama_context_default_params()
        # Each sequence has its own share of the cells, and llama.cpp wants shares of whole 256.
        cells = -(-tokens // 256) * 256 * sequences
        set_context_params(params, n_ctx=cells, n_batch=batch, n_ubatch=batch, n_seq_max=sequences)
        context = self._library.llama_init_from_model(self._model, params)
        if not context:
            raise ValueError("llama.cpp cannot make a context for the model")
        got = [int(getattr(self._library, f"llama_{name}")(context)) for name in ("n_ctx", "n_seq_max")]
        if got != [cells, sequences]:
            raise LayoutError(f"asked for a context of {cells} × {sequences}, got {got}")
        self._library.llama_set_n_threads(context, self._threads, self._threads)
        return int(context)

    def _decode(self, context: int, batch: Batch, entries: list[tuple[int, int, int, bool]]) -> None:
        """Run ``(token, position, sequence, want logits)`` entries."""
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        code = self._library.llama_decode(context, batch)
        if code != 0:
            raise ValueError(f"llama_decode failed with {code}")


def set_context_params(params: Opaque, **first: int) -> None:
    """Set sizes, switch flash attention off and the KV cache to f32.

    :raises LayoutError: when the defaults are not where they are known to be.
    """
    raw = bytes(params)
    at = raw.find(_KNOWN_RUN)
    if not raw.startswith(_FIRST_FIELDS) or at < 0 or raw.find(_KNOWN_RUN, at + 1) >= 0:
        raise LayoutError("llama_context_params is laid out otherwise")
    names = ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")
    struct.pack_into("<4I", params, 0, *(first[name] for name in names))
    struct.pack_into("<i", params, at + _FLASH_ATTENTION_AT, _FLASH_ATTENTION_OFF)
    struct.pack_into("<2i", params, at + _CACHE_TYPES_AT, _F32, _F32)


def _bind(path: str) -> Any:
    """Load the library and declare its functions."""
    library = ctypes.CDLL(path)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise LayoutError(f"{name} is not exported")
        function.restype, function.argtypes = result, arguments
    return library


_answers = -1


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(_answers, view) :]


def _answer(value: Any) -> None:
    _write_all(json.dumps(value).encode() + b"\n")


def serve(library: str, model: str, threads: int) -> None:
    """Answer requests until stdin ends."""
    runner = Runner(library, model, threads)
    _answer({"vocab_size": runner.vocab_size})
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "tokenize":
            _answer({"ids": [runner.tokenize(text) for text in request["texts"]]})
        elif request["op"] == "greedy":
            _answer({"ids": runner.greedy(request["prompts"], request["new_tokens"])})
        elif request["op"] == "logits":
            runner.logits(request["ids"])


def main() -> None:
    """Start serving; what llama.cpp prints on stdout goes to stderr."""
    global _answers
    _answers = os.dup(1)
    os.dup2(2, 1)
    try:
        serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except LayoutError as error:
        _answer({"error": str(error), "kind": "layout"})
    except (ValueError, OSError) as error:
        _answer({"error": str(error), "kind": "failed"})


if __name__ == "__main__":
    main()
