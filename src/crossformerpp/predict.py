"""Predict images with a checkpoint or an exported file: a prediction and a picture for each.

PyTorch is imported where a checkpoint needs it; exported ONNX files do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossformerpp.data.files import find_files, warn_left_out
from crossformerpp.data.images import IMAGE_EXTENSIONS, read_image, require_shape
from crossformerpp.data.names import path_inside, printable, safe_name
from crossformerpp.data.problems import Problems
from crossformerpp.data.writing import claim_folder, write_json, write_picture
from crossformerpp.recipes.load import apply_overrides, parse_recipe

if TYPE_CHECKING:
    from crossformerpp.tasks.plug import Prediction, Predictor


@dataclass(frozen=True)
class Predicted:
    """One image's result: a prediction and its pictures, or the reason why there is none."""

    image: Path
    prediction: Prediction | None = None
    pictures: tuple[Path, ...] = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        if self.prediction is None:
            return {"image": str(self.image), "error": self.error}
        pictures = [str(path) for path in self.pictures]
        return {"image": str(self.image), **self.prediction.to_json(), "pictures": pictures}


def load_predictor(
    path: Path,
    device: str = "auto",
    overrides: Iterable[str] = (),
    *,
    budget: str | None = None,
    cascade: bool = False,
    **options: Any,
) -> Predictor:
    """A predictor for a run directory, a checkpoint, or an exported ONNX file.

    Args:
        device: "cpu", "cuda", …; "auto" takes a GPU if there is one.
        overrides: `a.b=value` texts that change the run's recipe, e.g. how a segmenter looks at images.
        budget: What an image may cost, "30ms" or "2.1GMACs": the most accurate point of the run's front within it.
        cascade: Let a classifier decide image by image whether it needs the large setting of its cascade.
        options: The task's own, e.g. `top_k`.

    Raises:
        ValueError: There is no such checkpoint, or it cannot be used.
    """
    if budget is not None and cascade:
        raise ValueError("--budget and --cascade: a cascade has its own two settings; pass one of them")
    if path.suffix == ".onnx" and (budget is not None or cascade):
        raise ValueError(f"{path}: the groups of an exported model are fixed; export the run with --budget")
    if path.suffix == ".onnx":
        from crossformerpp.runtime import open_predictor

        if overrides:
            raise ValueError(
                f"--set {' '.join(overrides)}: the settings of an exported model are fixed; export it again"
            )
        return open_predictor(path, **options)
    import torch

    from crossformerpp.tasks import find_task
    from crossformerpp.tasks.points import open_at

    saved = open_at(path, budget)
    values = saved.recipe.model_dump()
    apply_overrides(values, overrides)
    saved = replace(saved, recipe=parse_recipe(values, f"in {saved.path}"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if cascade:
        return _open_cascade(path, saved, device=device, **options)
    return find_task(saved.recipe.task).predictor(saved, device=device, **options)


def _open_cascade(path: Path, saved: Any, **options: Any) -> Predictor:
    from crossformerpp.tasks.classification.cascade import CascadePredictor, read_cascade

    if saved.recipe.task != "classification":
        raise ValueError(f"--cascade: {path} is a run of {saved.recipe.task}; cascades are for classifiers")
    return CascadePredictor(saved, read_cascade(path, saved), **options)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files, and every image in the folders, sorted; other files in these are counted and named in a warning.

    Raises:
        ValueError: There is no such file or folder, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such image or folder")
        if path.is_dir():
            left_out = Problems()
            inside = sorted(find_files(path, IMAGE_EXTENSIONS, left_out))
            if not inside:
                more = f"; left out {left_out}" if left_out.found else ""
                raise ValueError(
                    f"{path}: no images in this folder (looked for {' '.join(IMAGE_EXTENSIONS)}{more})"
                )
            warn_left_out(path, left_out)
            found += inside
        else:
            found.append(path)
    return found


def predict(
    predictor: Predictor, images: Sequence[Path], out: Path | None = None, *, overwrite: bool = False
) -> Iterator[Predicted]:
    """Predict images one after another; one that cannot be read becomes a result with an `error`.

    Args:
        out: Where annotated pictures and predictions.json go; None: nowhere.

    Raises:
        ValueError: `out` holds something and may not be overwritten.
    """
    if out is not None:
        claim_folder(out, overwrite)
    results: list[dict[str, Any]] = []
    taken: set[str] = set()
    same = Counter(path.stem for path in images)
    for path in images:
        stem = path.stem if same[path.stem] == 1 else f"{path.parent.name}_{path.stem}"
        result = _predict_one(predictor, path, out, stem, taken)
        results.append(result.to_json())
        yield result
    if out is not None:
        write_json(out / "predictions.json", results)


def _predict_one(predictor: Predictor, path: Path, out: Path | None, stem: str, taken: set[str]) -> Predicted:
    name = printable(str(path))
    try:
        image = read_image(path, name)
        require_shape(image, name)
    except ValueError as error:
        return Predicted(path, error=str(error))
    try:
        prediction = predictor(image)
    except ValueError as error:
        return Predicted(path, error=f"{name}: {error}")
    pictures = []
    if out is not None:
        drawn = prediction.pictures(image)
        suffixes = {suffix: safe_name(f"_{suffix}")[1:] if suffix else "" for suffix in drawn}
        stem = _unused_stem(safe_name(stem), suffixes.values(), taken)
        for suffix, picture in drawn.items():
            pictures.append(path_inside(out, f"{stem}{suffixes[suffix]}.png"))
            write_picture(pictures[-1], picture)
    return Predicted(path, prediction, tuple(pictures))


def _unused_stem(stem: str, suffixes: Collection[str], taken: set[str]) -> str:
    """The stem, numbered if it would give a picture a name that another image's picture has."""
    name, number = stem, 1
    while not taken.isdisjoint(name + suffix for suffix in suffixes):
        number += 1
        name = f"{stem}_{number}"
    taken.update(name + suffix for suffix in suffixes)
    return name
