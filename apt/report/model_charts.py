"""A model as charts: parameters, and the values of its weights layer by layer, read from the files without torch."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from apt.checkpoint.architecture import Architecture
from apt.checkpoint.fact_sheet import ModelFacts
from apt.checkpoint.facts import model_facts
from apt.checkpoint.gguf import GGUFFile
from apt.checkpoint.reader import Checkpoint
from apt.checkpoint.sizes import open_model
from apt.checkpoint.weight_scan import TensorScan, scan_weights, to_floats
from apt.console.errors import UnsupportedError
from apt.console.units import format_bytes, format_count
from apt.report.charts import Chart, Point, Series
from apt.report.language import Translate
from apt.report.page import Tile

if TYPE_CHECKING:
    import numpy as np

#: Roles of a layer's matrices by the chart that shows them.
GROUPS: Final = {
    "attention": ("Attention weights", ("q", "k", "v", "qkv", "o")),
    "mlp": ("MLP weights", ("gate", "up", "gate_up", "down")),
}
#: Matrices named in the chart of outliers.
OUTLIERS: Final = 10
#: Values up to which the spectrum is computed: one product with each matrix takes that many multiplications.
SPECTRUM_VALUES: Final = 2_000_000_000
_POWER_STEPS: Final = 60
#: Matrices with a side up to this get their spectral norm exactly, from the eigenvalues of the smaller product.
_EXACT_SIDE: Final = 512


class ModelView:
    """What is drawn of a model, and the facts beside it."""

    def __init__(self, ref: str, words: Translate) -> None:
        self.facts: ModelFacts = model_facts(ref)
        self._words = words
        self._model = open_model(ref)
        self._scans: dict[str, TensorScan] = {}
        if isinstance(self._model, Checkpoint):
            self._scans = {s.name: s for s in scan_weights(self._model)}

    def charts(self) -> list[Chart]:
        """Return every chart for which there are figures."""
        found = [*self._counts()]
        if isinstance(self._model, Checkpoint) and self._scans:
            with suppress(UnsupportedError):  # no family, no roles: the outliers still have names
                found += self._layers(self._model, self._model.architecture)
            found += self._outliers(self._model)
        return [c for c in found if any(s.points for s in c.series)]

    def tiles(self) -> list[Tile]:
        """Return the headline figures."""
        w, f = self._words, self.facts
        bad = sum(s.non_finite for s in self._scans.values())
        tiles = [
            Tile(w("parameters"), format_count(f.parameters), f.architecture),
            Tile(w("size"), format_bytes(f.size_bytes), ", ".join(f.parameters_by_dtype)),
            Tile(w("layers"), str(f.layers or w("unknown")), f"{w('context')} {f.context or w('unknown')}"),
        ]
        return [*tiles, Tile(w("non-finite values"), format_count(bad), w("weights read"))] if self._scans else tiles

    def rows(self) -> list[list[str]]:
        """Return the facts below the charts."""
        w, f = self._words, self.facts
        kind = "GGUF" if isinstance(self._model, GGUFFile) else f.format
        return [
            [w("architecture"), f.architecture],
            [w("format"), kind],
            [w("tensors"), format_count(f.tensors)],
            [w("parameters"), format_count(f.parameters)],
        ]

    def _counts(self) -> Iterator[Chart]:
        w = self._words
        counts = (
            ("components", "Parameters by component", "component", "Parameters of each component of the model.",
             self.facts.parameters_by_component),
            ("dtypes", "Parameters by type", "type", "Parameters stored in each data type.",
             self.facts.parameters_by_dtype),
        )  # fmt: skip
        for name, title, x_label, about, figures in counts:
            points = tuple(Point(w(k), float(v)) for k, v in figures.items() if v)
            yield Chart(
                id=name, kind="bars", title=w(title), description=w(about), x_label=w(x_label), y_label=w("parameters"),
                series=(Series(w("parameters"), points),), unit="count", log_label=w("log scale"),
            )  # fmt: skip

    def _layers(self, checkpoint: Checkpoint, architecture: Architecture) -> Iterator[Chart]:
        """Root mean square, largest magnitude and stable rank over the layers, attention and MLP apart."""
        w = self._words
        spectrum = checkpoint.parameters <= SPECTRUM_VALUES
        about = w("Each line is one matrix, from the first layer to the last.")
        for group, (title, roles) in GROUPS.items():
            matrices: dict[str, dict[int, TensorScan]] = defaultdict(dict)
            for name, scan in self._scans.items():
                role, layer = architecture.role_of(name), architecture.layer_of(name)
                if role in roles and layer is not None and name.endswith(".weight"):
                    matrices[role][layer] = scan
            names = [r for r in roles if r in matrices]

            def series(figure: Any, names: list[str] = names, matrices: Any = matrices) -> tuple[Series, ...]:
                return tuple(
                    Series(r, tuple(Point(float(n), figure(s)) for n, s in sorted(matrices[r].items()))) for r in names
                )

            shared: dict[str, Any] = {"kind": "lines", "x_label": w("layer"), "whole_x": True}
            yield Chart(
                id=f"{group}-rms", title=w(f"{title}: root mean square"), description=about,
                y_label=w("root mean square of the values (sampled)"), series=series(lambda s: s.rms), **shared,
            )  # fmt: skip
            yield Chart(
                id=f"{group}-largest", title=w(f"{title}: largest magnitude"), description=about,
                y_label=w("largest magnitude"), series=series(lambda s: s.largest), **shared,
            )  # fmt: skip
            if spectrum:
                meaning = w("Stable rank: squared Frobenius norm over squared spectral norm.")
                yield Chart(
                    id=f"{group}-rank", title=w(f"{title}: stable rank"), description=f"{about} {meaning}",
                    y_label=w("stable rank, of the full rank"), unit="share",
                    series=series(lambda s: stable_rank_share(checkpoint, s.name)), **shared,
                )  # fmt: skip

    def _outliers(self, checkpoint: Checkpoint) -> Iterator[Chart]:
        w = self._words
        matrices = [s for s in self._scans.values() if len(checkpoint.tensors[s.name].shape) > 1 and s.rms > 0]
        highest = sorted(matrices, key=lambda s: s.largest / s.rms, reverse=True)[:OUTLIERS]
        points = tuple(Point(short_name(s.name), s.largest / s.rms, note=s.name) for s in highest)
        yield Chart(
            id="outliers", kind="bars", title=w("Outliers: largest magnitude over the root mean square"),
            description=w("The matrices whose largest value stands out most."), x_label=w("tensor"),
            y_label=w("times the root mean square"), series=(Series(w("times the root mean square"), points),),
            log_label=w("log scale"),
        )  # fmt: skip


def short_name(tensor: str) -> str:
    """Shorten a tensor's name to what fits beside a bar: ``"12 down"``, ``"3.7 gate"`` (an expert), ``"embed"``."""
    parts = tensor.removesuffix(".weight").split(".")
    place = ".".join(p for p in parts if p.isdigit())
    last = next((p for p in reversed(parts) if not p.isdigit()), "")
    return f"{place} {last.removesuffix('_proj').removesuffix('_tokens')}".strip()


def stable_rank_share(checkpoint: Checkpoint, name: str) -> float:
    """Return a matrix's stable rank as a share of its full rank; 0 for a matrix of zeros or with non-finite values.

    The stable rank is ‖W‖F² / ‖W‖₂² (Rudelson and Vershynin 2007). Of large matrices the spectral norm comes by power
    iteration from a fixed start, which approaches it from below: the share is then an upper estimate.
    """
    import numpy as np

    tensor = checkpoint.tensors[name]
    words = np.frombuffer(checkpoint.read_bytes(name), f"<u{tensor.size_bytes // tensor.elements}")
    matrix: np.ndarray[Any, Any] = to_floats(words, tensor.dtype).astype(np.float32).reshape(-1, tensor.shape[-1])
    total = float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64))
    if not np.isfinite(total) or total == 0:
        return 0.0
    largest = _spectral_square(matrix)
    return min(1.0, total / largest / min(matrix.shape)) if largest else 0.0


def _spectral_square(matrix: "np.ndarray[Any, Any]") -> float:
    """Return the largest squared singular value."""
    import numpy as np

    if min(matrix.shape) <= _EXACT_SIDE:
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        return float(np.linalg.eigvalsh(wide @ wide.T)[-1])
    vector = np.random.default_rng(0).standard_normal(matrix.shape[1], np.float32)
    largest = 0.0
    for _ in range(_POWER_STEPS):
        vector /= np.linalg.norm(vector)
        image = matrix @ vector
        largest = float(np.dot(image, image))
        vector = matrix.T @ image
    return largest
