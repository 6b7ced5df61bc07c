"""Does the file compute and tokenize in llama.cpp as the checkpoint does in transformers?"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.console.errors import BadInputError, CheckFailedError
from apt.console.progress import progress
from apt.evaluation.scoring import token_divergence
from apt.evaluation.statistics import ratio_estimate
from apt.plugins.builtin.ollama.expand import expand_to_f32
from apt.plugins.builtin.ollama.llama_cpp import LlamaCpp
from apt.plugins.builtin.ollama.mapping import PlannedTensor
from apt.plugins.builtin.ollama.results import GreedyCheck, PredictionCheck

if TYPE_CHECKING:
    from apt.evaluation.texts import Rows

PROMPTS: Final = 16
PROMPT_TOKENS: Final = 16
NEW_TOKENS: Final = 64
#: Two best logits nearer than this are a tie that rounding may turn.
MARGIN: Final = 1e-3
MAX_KL: Final = 0.005
MIN_AGREEMENT: Final = 0.985
MAX_PERPLEXITY_CHANGE: Final = 0.01

#: Texts whose token ids must be the same: code, scripts, emoji, numbers, white space of every kind.
TEXTS: Final = (
    "",
    " ",
    "Hello world",
    " leading, trailing ",
    "def f(x):\n\treturn {'a': [1, 22, 333, 4444]}\n\n\nclass A(B):\n    pass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 3.14159e-10; } // done",
    "It's we'll they've I'M YOU'RE don't 'S",
    "你好，世界。这是一个测试：一二三。日本語テキスト 한국어",
    "Ünïcödé, Ελληνικά, Русский, עברית, العربية, हिन्दी",
    "😀👍🏽 👨‍👩‍👧‍👦 🇨🇳 emoji✨",
    "1 12 123 1234 12345 1,234,567.89 ０１２ ½ Ⅳ",
    "a  b   c    d     e\t\tf \n g\r\nh\r\ri\u00a0j\u3000k\u200bl",
    "\n\n\n   \n  x\n ",
    "https://example.org/a?b=c&d=%20#e <tag attr=\"v\">&amp;</tag>",
    "!!!???...---___===+++***///\\\\\\|||```~~~@@@$$$%%%^^^",
    "\u0000\u0001\u007f\ufffd\U0010ffff",
)  # fmt: skip


def check_tokens(checkpoint: Checkpoint, runner: LlamaCpp, extra: Sequence[str] = ()) -> int:
    """Compare token ids of :data:`TEXTS`, of texts with the special tokens in them, and of ``extra``.

    :returns: the number of texts.
    :raises CheckFailedError: naming the first text that differs.
    """
    tokenizer: Any = checkpoint.tokenizer()
    special = [f"before{text} after" for text in tokenizer.all_special_tokens]
    texts = [*TEXTS, *special, *extra]
    for text, found in zip(texts, runner.tokenize(texts), strict=True):
        expected = tokenizer(text, verbose=False)["input_ids"]
        if found != expected:
            at = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
            raise CheckFailedError(
                f"llama.cpp tokenizes {text[:80]!r} otherwise: from token {at} on {found[at : at + 5]}, "
                f"transformers {expected[at : at + 5]}"
            )
    return len(texts)


def measure_predictions(model: Any, runner: LlamaCpp, rows: "Rows") -> PredictionCheck:
    """Compare the predictions after every counted token.

    :param model: the transformers model in fp32.
    """
    import numpy as np

    sums = np.zeros((len(rows), 4))  # KL, agreements, NLL in transformers, NLL in llama.cpp
    with progress("running in llama.cpp", len(rows), "rows") as bar:
        for i in range(len(rows)):
            sums[i] = _row_sums(model, runner, rows, i)
            bar.advance()
    tokens = rows.counted.sum(dim=1).numpy().astype(np.int64)
    change = float(np.exp((sums[:, 3].sum() - sums[:, 2].sum()) / tokens.sum())) - 1
    return PredictionCheck(
        tokens=int(tokens.sum()),
        text=rows.source,
        kl=ratio_estimate(sums[:, 0], tokens),
        agreement=ratio_estimate(sums[:, 1], tokens),
        perplexity_checkpoint=ratio_estimate(sums[:, 2], tokens, np.exp),
        perplexity_gguf=ratio_estimate(sums[:, 3], tokens, np.exp),
        perplexity_change=change,
    )


def within_limits(figures: PredictionCheck) -> bool:
    """Whether all figures are within their limits; a NaN is not."""
    return (
        figures.kl.value <= MAX_KL
        and figures.agreement.value >= MIN_AGREEMENT
        and abs(figures.perplexity_change) <= MAX_PERPLEXITY_CHANGE
    )


def is_doubtful(figures: PredictionCheck) -> bool:
    """Whether a miss may be chance: the intervals of KL and agreement still reach their limits."""
    return not within_limits(figures) and figures.kl.low <= MAX_KL and figures.agreement.high >= MIN_AGREEMENT


def judge(path: Path, figures: PredictionCheck) -> None:
    """Check the figures against :data:`MAX_KL`, :data:`MIN_AGREEMENT` and :data:`MAX_PERPLEXITY_CHANGE`.

    :raises CheckFailedError: with the figures.
    """
    if not within_limits(figures):
        raise CheckFailedError(
            f"{path}: in llama.cpp the GGUF predicts otherwise than the checkpoint: "
            f"mean KL {figures.kl.value:.5f} nats (limit {MAX_KL}), "
            f"same top token {100 * figures.agreement.value:.2f} % (limit {100 * MIN_AGREEMENT:g}), "
            f"perplexity {100 * figures.perplexity_change:+.2f} % (limit {100 * MAX_PERPLEXITY_CHANGE:g}), "
            f"over {figures.tokens} tokens"
        )


def _row_sums(model: Any, runner: LlamaCpp, rows: "Rows", index: int) -> list[float]:
    """Return KL, agreements and both negative log-likelihoods of one row, summed over its counted tokens."""
    import torch

    last = int(rows.counted[index].nonzero().max()) + 1 if bool(rows.counted[index].any()) else 0
    ids = rows.ids[index, : last + 1]
    with torch.inference_mode():
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    totals = [0.0] * 4
    at = 0
    for chunk in runner.logits(ids.tolist()):
        end = min(at + len(chunk), last)  # nothing follows the last token
        counted = rows.counted[index, at:end]
        if bool(counted.any()):
            ours = torch.log_softmax(logits[at:end].float(), dim=-1)[counted]
            theirs = torch.log_softmax(torch.tensor(chunk[: end - at]), dim=-1)[counted]
            target = ids[at + 1 : end + 1][counted][:, None]
            kl, agree = token_divergence(ours, theirs)
            found = (kl, agree, -ours.gather(1, target).double(), -theirs.gather(1, target).double())
            totals = [total + float(values.sum()) for total, values in zip(totals, found, strict=True)]
        at += len(chunk)
    return totals


@dataclass(frozen=True, slots=True)
class Reference:
    """What transformers generates greedily: ids and the distance of the two best logits, ``[prompts][tokens]``."""

    ids: list[list[int]]
    margins: list[list[float]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a prompt's continuation leaves the reference."""

    prompt: int
    step: int
    margin: float
    found: int
    expected: int


def check_greedy(
    model: Any, gguf: GGUFFile, runner: LlamaCpp, rows: "Rows", plan: Mapping[str, PlannedTensor], context: int
) -> GreedyCheck:
    """Compare greedy continuations; rounds ``model``'s weights to the file's types in place.

    :raises CheckFailedError: naming the first token that differs, with its margin.
    """
    prompts = cut_prompts(rows, context)
    new_tokens = min(NEW_TOKENS, context - len(prompts[0]))
    rounded = round_weights(model, gguf, plan)
    reference = generate(model, prompts, new_tokens)
    compared, early, differences = compare(reference, runner.greedy(prompts, new_tokens))
    if differences:
        _explain_by_rounding(gguf, prompts, new_tokens, reference, differences)
    return GreedyCheck(
        prompts=len(prompts),
        tokens_each=new_tokens,
        compared=compared,
        ended_early=early,
        ended_by_rounding=len(differences),
        margin=MARGIN,
        reference="checkpoint rounded to f16" if rounded else "checkpoint",
    )


def cut_prompts(rows: "Rows", context: int) -> list[list[int]]:
    """Return up to :data:`PROMPTS` prompts of one length from the rows, each after its row's first token.

    :raises BadInputError: when no row is long enough.
    """
    length = min(PROMPT_TOKENS, context // 2)
    prompts: list[list[int]] = []
    start = 1
    while len(prompts) < PROMPTS:
        before = len(prompts)
        for ids, counted in zip(rows.ids.tolist(), rows.counted.tolist(), strict=True):
            body = ids[start : start + length - 1]
            if len(body) == length - 1 and all(counted[start - 1 : start + length - 2]):
                prompts.append([ids[0], *body])
        if len(prompts) == before:
            break
        start += length - 1
    if not prompts:
        raise BadInputError(f"the text {rows.source!r} has no row of {length} tokens to continue")
    return prompts[:PROMPTS]


def round_weights(model: Any, gguf: GGUFFile, plan: Mapping[str, PlannedTensor]) -> bool:
    """Round the model's weights to f16 where the file holds f16; return whether that changed any."""
    import torch

    parameters = dict(model.named_parameters())
    changed = False
    with torch.no_grad():
        for name, tensor in gguf.tensors.items():
            source = plan[name].source if name in plan else ""
            if tensor.type == "F16" and source in parameters:
                weight = parameters[source]
                value = weight.half().float()
                changed = changed or not torch.equal(weight, value)
                weight.copy_(value)
    return changed


def generate(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> Reference:
    """Continue prompts of one length greedily in transformers."""
    import torch

    ids: list[Any] = []
    margins: list[Any] = []
    inputs, cache = torch.tensor([list(p) for p in prompts]), None
    with torch.inference_mode():
        for _ in range(new_tokens):
            output = model(input_ids=inputs, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            best = output.logits[:, -1].float().topk(2, dim=-1)
            ids.append(best.indices[:, 0])
            margins.append(best.values[:, 0] - best.values[:, 1])
            inputs = best.indices[:, :1]
    return Reference(torch.stack(ids, dim=1).tolist(), torch.stack(margins, dim=1).tolist())


def compare(reference: Reference, found: Sequence[Sequence[int]]) -> tuple[int, int, list[Difference]]:
    """Return tokens that are equal, prompts ended at a near tie, and the first difference of each other prompt."""
    equal, early = 0, 0
    differences = []
    for number, (ids, margins, got) in enumerate(zip(reference.ids, reference.margins, found, strict=True)):
        for step, (expected, margin, token) in enumerate(zip(ids, margins, got, strict=True)):
            if margin < MARGIN:
                early += 1
                break
            if token != expected:
                differences.append(Difference(number, step, margin, token, expected))
                break
            equal += 1
    return equal, early, differences


def _explain_by_rounding(
    gguf: GGUFFile,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    reference: Reference,
    differences: Sequence[Difference],
) -> None:
    """Fail unless the differing prompts agree when llama.cpp computes in f32 on the values of the file."""
    left: Sequence[Difference] = differences
    if any(tensor.type == "F16" for tensor in gguf.tensors.values()):
        with tempfile.TemporaryDirectory() as folder:
            expanded = Path(folder) / "expanded.gguf"
            expand_to_f32(gguf, expanded)
            with LlamaCpp(expanded) as runner:
                left = compare(reference, runner.greedy(prompts, new_tokens))[2]
    if left:
        d = left[0]
        raise CheckFailedError(
            f"{gguf.path}: greedy text differs from the checkpoint's in {len(left)} of {len(prompts)} prompts: "
            f"prompt {d.prompt}, token {d.step}: llama.cpp {d.found}, transformers {d.expected}, "
            f"whose logit is ahead by {d.margin:.4f} (limit {MARGIN})"
        )
