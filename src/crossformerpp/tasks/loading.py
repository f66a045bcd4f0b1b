"""Load weights into a model and report what happened to each tensor."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from timm.models import adapt_input_conv
from torch import Tensor, nn

from crossformerpp.ablations.position import enlarge_tables
from crossformerpp.checkpoints import recorded_lda
from crossformerpp.models import VARIANTS
from crossformerpp.recipes.schema import ModelSection
from crossformerpp.tasks.saved import trained_section

Fate = Literal["loaded", "resized", "fresh", "skipped"]
_MEANING: dict[Fate, str] = {
    "loaded": "taken as they are",
    "resized": "fitted to other input channels or larger groups",
    "fresh": "new, at random: not in the file, or of another shape there",
    "skipped": "in the file, not used",
}
_COLOURS = 3  # channels of the weights that `adapt_input_conv` knows how to fit


@dataclass(frozen=True)
class LoadedTensor:
    """One tensor's fate, with its shape in the model and in the file; None where it is not there."""

    key: str
    fate: Fate
    here: tuple[int, ...] | None
    found: tuple[int, ...] | None

    def __str__(self) -> str:
        if self.here == self.found or None in (self.here, self.found):
            return f"{self.key} {self.here or self.found or ''}".rstrip()
        return f"{self.key} {self.found} -> {self.here}"


@dataclass(frozen=True)
class LoadReport:
    """Which tensors were loaded, resized, left fresh and skipped.

    Attributes:
        notes: What else differs, although no weight depends on it: group sizes, intervals and LDA's grouping.
    """

    source: Path
    tensors: tuple[LoadedTensor, ...]
    notes: tuple[str, ...] = ()

    def keys(self, fate: Fate) -> list[str]:
        """The names of the tensors of that fate, in the model's order."""
        return [tensor.key for tensor in self.tensors if tensor.fate == fate]

    def rows(self) -> list[tuple[str, str, str]]:
        """Fate, number of tensors, meaning and which; fates that did not occur are left out."""
        rows: list[tuple[str, str, str]] = []
        for fate, meaning in _MEANING.items():
            tensors = [tensor for tensor in self.tensors if tensor.fate == fate]
            if tensors:
                named = "" if fate == "loaded" else ": " + _some([str(tensor) for tensor in tensors], limit=2)
                rows.append((fate, str(len(tensors)), meaning + named))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain data: the counts, and the keys of all but the loaded tensors."""
        fates: dict[str, Any] = {fate: self.keys(fate) for fate in _MEANING}
        return {
            "source": str(self.source),
            **fates,
            "loaded": len(fates["loaded"]),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{fate:<8}{count:>5}  {what}" for fate, count, what in self.rows()]
        return "\n".join([f"weights from {self.source}:", *lines, *self.notes])


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: Path,
    *,
    may_differ: tuple[str, ...] = (),
    skipped: Iterable[str] = (),
) -> LoadReport:
    """Load weights into a model, all of them or none.

    Convolutions that the model's configuration calls its first are fitted to other numbers of input channels,
    as timm does, from those of colour images; smaller tables of an offline interpolated RPB are enlarged.

    Args:
        may_differ: Prefixes of keys that stay as they are where they are missing or of another shape.
        skipped: Keys that the file had besides, for the report.

    Raises:
        ValueError: Other keys differ; names them and how they differ. Or weights are NaN, infinite, or of a kind of
            number that would be cut off.
    """
    _refuse_not_finite(weights, source)
    own = model.state_dict()
    _refuse_other_numbers(own, weights, source)
    first, enlarged = _first_weights(model), enlarge_tables(model, weights)
    state, tensors = {}, []
    for key, value in own.items():
        here, weight = tuple(value.shape), weights.get(key)
        found = None if weight is None else tuple(weight.shape)
        fate: Fate = "fresh"
        if weight is not None and here == found:
            fate, state[key] = "loaded", weight
        elif weight is not None and enlarged[key].shape == value.shape:
            fate, state[key] = "resized", enlarged[key]
        elif weight is not None and key in first and weight.shape[1] == _COLOURS:
            fitted = adapt_input_conv(here[1], weight)
            if fitted.shape == value.shape:
                fate, state[key] = "resized", fitted
        tensors.append(LoadedTensor(key, fate, here, found))
    unused = [
        LoadedTensor(key, "skipped", None, tuple(weights[key].shape)) for key in weights if key not in own
    ]
    wrong = [
        t for t in (*tensors, *unused) if t.fate in ("fresh", "skipped") and not t.key.startswith(may_differ)
    ]
    if wrong:
        raise ValueError(
            f"{source}: weights of another model, {len(wrong)} keys differ: {_some([_problem(t) for t in wrong])}"
        )
    model.load_state_dict(state, strict=False)
    left = [LoadedTensor(key, "skipped", None, None) for key in skipped]
    return LoadReport(source, (*tensors, *unused, *left))


def _refuse_not_finite(weights: Mapping[str, Tensor], source: Path) -> None:
    bad = [
        key
        for key, weight in weights.items()
        if weight.is_floating_point() and not weight.is_meta and not weight.isfinite().all()
    ]
    if bad:
        raise ValueError(
            f"{source}: {len(bad)} of its {len(weights)} tensors hold NaN or infinity: {_some(bad)}; the file is "
            "damaged, or its training failed"
        )


def _refuse_other_numbers(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path) -> None:
    """Integers (quantised weights) and complex numbers would be copied without a word, as other values."""
    bad = [
        f"{key} ({str(weight.dtype).removeprefix('torch.')})"
        for key, weight in weights.items()
        if key in own and (weight.is_complex() or weight.is_floating_point() != own[key].is_floating_point())
    ]
    if bad:
        raise ValueError(
            f"{source}: {len(bad)} of its {len(weights)} tensors are of another kind of number: {_some(bad)}; "
            "quantised weights have to be turned back into floating point first"
        )


def start(section: ModelSection, load: Callable[[Path], LoadReport]) -> LoadReport | None:
    """Start from the checkpoint that a recipe's model section names, if it names one.

    Args:
        load: Loads a file as the task does.

    Returns:
        The report, with a note of each of G, I and LDA's grouping that is not what the weights were trained with.

    Raises:
        ValueError: There is no such file or run, or as `load`.
    """
    if section.checkpoint is None:
        return None
    if not section.checkpoint.exists():
        raise ValueError(
            f"model.checkpoint {section.checkpoint}: no such file or run; `crossformer convert` makes one of the "
            "authors' file, `crossformer weights crossformer_small` downloads one and prints its path (for --set "
            "model.name=crossformer_small --set model.checkpoint=PATH), =RUN takes a run's, and =null begins with "
            "random weights"
        )
    trained = trained_section(section.checkpoint)
    try:
        report = load(section.checkpoint)
    except ValueError as error:
        if trained is None or (trained.name, trained.options) == (section.name, section.options):
            raise
        raise ValueError(
            f"{error}; they are of model.name={trained.name} with model.options={trained.options}, which --set takes"
        ) from None
    here = _grouping(section)
    lda = recorded_lda(section.checkpoint)
    there = _grouping(trained) if trained is not None else {"lda": lda} if lda else {}
    notes = [
        f"{name} {here[name]} here, trained with {there[name]}: the weights fit either, the outputs differ"
        for name in there
        if here[name] != there[name]
    ]
    return replace(report, notes=(*notes, *report.notes))


def _grouping(section: ModelSection) -> dict[str, Any]:
    options: dict[str, Any] = {**VARIANTS.get(section.name, {}), **section.options}
    return {name: _shortened(options.get(name)) for name in ("group_sizes", "intervals", "lda")}


def _shortened(per_stage: Any) -> Any:
    """As lists, one value in the place of equal ones of a stage's blocks."""
    if not isinstance(per_stage, list | tuple):
        return per_stage
    return [_of_stage(list(value)) if isinstance(value, list | tuple) else value for value in per_stage]


def _of_stage(values: list[Any]) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else values


def _first_weights(model: nn.Module) -> set[str]:
    names: Any = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    return {f"{name}.weight" for name in ((names,) if isinstance(names, str) else names)}


def _problem(tensor: LoadedTensor) -> str:
    if tensor.here is None:
        return f"{tensor.key} unknown"
    return f"{tensor.key} {tensor.found or 'missing'} instead of {tensor.here}"


def _some(texts: list[str], limit: int = 4) -> str:
    more = f"; and {len(texts) - limit} more" if len(texts) > limit else ""
    return "; ".join(texts[:limit]) + more
