"""What an exported file is worth: run over validation data, beside the checkpoint it was made from.

The certificate is written into the file's own metadata, under `crossformerpp_certificate`, and with every image into a
JSON beside it, FILE.certificate.json, which names the file's SHA-256.
"""

import hashlib
import json
import math
import shutil
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import crossformerpp
from crossformerpp.analysis.conformal import Promise
from crossformerpp.analysis.tiled import TiledPredictor
from crossformerpp.data.names import printable
from crossformerpp.data.split import Split
from crossformerpp.data.writing import replacing_folder, replacing_path, to_json, write_json
from crossformerpp.export.judges import Judge, LabelSetJudge, open_judge
from crossformerpp.recipes.detection import DetectionRecipe
from crossformerpp.recipes.load import apply_overrides, parse_page, parse_recipe
from crossformerpp.recipes.schema import BaseRecipe
from crossformerpp.recipes.tiles import tile_overrides
from crossformerpp.runtime import open_predictor, predictor_of
from crossformerpp.runtime.files import KEY
from crossformerpp.tasks import find_task
from crossformerpp.tasks.classification.evaluation import ClassificationEvaluation
from crossformerpp.tasks.classification.label_evaluation import LabelSetEvaluation
from crossformerpp.tasks.classification.promise import judge_promise
from crossformerpp.tasks.plug import Evaluation
from crossformerpp.tasks.points import SettingSection, at_setting
from crossformerpp.tasks.programs import open_program
from crossformerpp.tasks.saved import SavedRun, open_saved

CERTIFICATE_KEY = f"{KEY}_certificate"
_PACKAGES = ("torch", "onnxruntime", "numpy", "pillow")


@dataclass(frozen=True)
class Certificate:
    """What was found.

    Attributes:
        metrics: Of the exported file; `reference`: of the checkpoint, if there is one.
        images: Per image its name, how far the two answers are apart (in the judge's unit), and the share of classes,
            objects or pixels that agree; empty without a checkpoint.
        promise: A classifier's conformal threshold for this file, if it has one.
    """

    path: Path
    about: dict[str, Any]
    data: str
    evaluation: Evaluation
    split: Split
    monitor: str
    agrees_in: str
    checkpoint: str | None = None
    reference: dict[str, float] | None = None
    images: list[tuple[str, float, float]] = field(default_factory=list)
    promise: Promise | None = None
    is_calibrated: bool = False

    @property
    def drop(self) -> float:
        """How much worse than the checkpoint's the metric is by which the best checkpoint is chosen."""
        before, after = self.main_figures
        return before - after

    @property
    def main_figures(self) -> tuple[float, float]:
        """That metric of the checkpoint and of the file; NaN where the data have nothing to measure it by."""
        assert self.reference is not None
        before, after = (m.get(self.monitor, math.nan) for m in (self.reference, self.evaluation.metrics))
        return before, after

    def metrics(self) -> dict[str, Any]:
        """The evaluation's, and those of the comparison."""
        return self.evaluation.metrics | (self.compared() if self.reference is not None else {})

    def compared(self) -> dict[str, float]:
        """The comparison in four figures."""
        drift = [apart for _, apart, _ in self.images]
        return {
            f"checkpoint_{self.monitor}": self.main_figures[0],
            "agreement": float(np.mean([same for *_, same in self.images])),
            "drift_mean": float(np.mean(drift)),
            "drift_largest": float(np.max(drift)),
        }

    def to_json(self) -> dict[str, Any]:
        """Without the single images, as the file's metadata hold it."""
        page = {
            "judged": datetime.now(UTC).isoformat(timespec="seconds"),
            "crossformerpp": crossformerpp.__version__,
            "packages": _versions(),
            "precision": self.about["precision"],
            "data": self.data,
            "metrics": self.evaluation.metrics,
        }
        if self.reference is None:
            return page
        return page | {
            "checkpoint": {"name": self.checkpoint, "metrics": self.reference},
            "agrees_in": self.agrees_in,
            **self.compared(),
        }

    def write(self) -> Path:
        """Put it into the file and beside it; the JSON's path.

        Raises:
            OSError: The disk is full; the file is as it was.
        """
        page = self.to_json()
        entries = {CERTIFICATE_KEY: to_json(page)}
        if self.is_calibrated and self.promise is not None:
            entries[KEY] = json.dumps(self.about | {"conformal": self.promise.to_json()})
        with replacing_path(self.path) as unfinished:
            write_metadata(self.path, unfinished, entries)
        images = [dict(zip(("image", "drift", "agreement"), row, strict=True)) for row in self.images]
        beside = certificate_path(self.path)
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()
        write_json(beside, {"file": self.path.name, "sha256": digest, **page, "images": images})
        return beside


def certificate_path(path: Path) -> Path:
    """Beside the exported file."""
    return path.with_name(f"{path.name}.certificate.json")


def write_results(certificate: Certificate, folder: Path) -> None:
    """metrics.json, tables and pictures, as of a run's evaluation."""
    about = {"file": certificate.path.name, "data": certificate.data}
    with replacing_folder(folder) as draft:
        write_json(draft / "metrics.json", certificate.metrics() | about)
        certificate.evaluation.write(draft, certificate.split)


def certify(
    path: Path,
    *,
    root: Path | None = None,
    checkpoint: Path | None = None,
    overrides: Iterable[str] = (),
    tiles: tuple[int | None, float | None] = (None, None),
    conformal: float | None = None,
    track: Any = lambda items, total: items,
) -> Certificate:
    """Run an exported file over data, and its checkpoint beside it. Nothing is written.

    Args:
        root: The data; default: the checkpoint's validation data, or those of a built-in recipe.
        checkpoint: What the file was made from.
        overrides: `a.b=value` texts that change how the recipe finds its data.
        tiles: Side and overlap of the tiles that an exported detector looks at images in.
        conformal: Calibrate a classifier's answers for this coverage.
        track: Shows progress over (items, their number).

    Raises:
        ValueError: The file, the checkpoint or the data cannot be used, or do not belong together.
    """
    saved = None if checkpoint is None else open_saved(checkpoint)
    network = open_program(path) if path.suffix == ".pt2" else open_predictor(path).network
    about = network.about
    if saved is not None and about.get("setting") is not None:  # exported with --budget
        saved = at_setting(saved, SettingSection(**about["setting"]))
    if about["task"] != "classification" and conformal is not None:
        raise ValueError(f"--conformal is for classifiers; {path} is for {about['task']}")
    if about.get("thresholds") is not None and conformal is not None:
        raise ValueError(
            "--conformal is for one label per image; with multi_label every class has its threshold"
        )
    if about["task"] == "segmentation" and tiles[0] is not None:
        raise ValueError(
            f"{path}: an exported segmenter looks at whole images; evaluate its run with --tiles"
        )
    overrides = [*tile_overrides(about["task"], *tiles), *overrides]
    recipe = _recipe(path, about, saved, overrides, root)
    names = about.get("labels") or about["class_names"]
    if saved is not None and (saved.recipe.task, saved.class_names) != (about["task"], names):
        raise ValueError(f"{path} was not made from {checkpoint}: another task, or other classes")
    split = find_task(recipe.task).split(recipe, "val" if root is None else "test", names)
    options = {"min_score": recipe.detector.min_score} if isinstance(recipe, DetectionRecipe) else {}
    predictor: Any = predictor_of(network, path, **options)
    ours, theirs = open_judge(split, recipe), open_judge(split, recipe)
    if isinstance(recipe, DetectionRecipe) and recipe.data.tiles is not None:
        predictor = TiledPredictor(predictor, recipe.data.tiles)
    reference = None
    if saved is not None:
        reference = find_task(recipe.task).predictor(replace(saved, recipe=recipe), device="cpu", **options)
    images = _run(ours, theirs, predictor, reference, split, track)
    evaluation = _evaluation(ours, is_other=root is not None)
    promise = None
    if isinstance(evaluation, ClassificationEvaluation):
        known = about.get("conformal")
        evaluation, promise = judge_promise(
            evaluation, None if known is None else Promise(**known), conformal, is_other=root is not None
        )
    return Certificate(
        path,
        about,
        printable(root.name) if root is not None else "validation",
        evaluation,
        split,
        ours.monitor,
        ours.agrees_in,
        None if saved is None else saved.path.name,
        None if saved is None else _evaluation(theirs, is_other=root is not None).metrics,
        images,
        promise,
        conformal is not None,
    )


def _run(
    ours: Judge, theirs: Judge, predictor: Any, reference: Any, split: Split, track: Any
) -> list[tuple[str, float, float]]:
    """Let both answer all images; name, drift and agreement of each, none without a reference."""
    compared, names = [], split.names
    for number, image, known in track(ours.samples(), len(names)):
        name = names[number]
        try:
            answer = ours.add(number, image, known, predictor)
            if reference is not None:
                expected = theirs.add(number, image, known, reference)
                compared.append((name, *ours.compare(answer, expected)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return compared


def _evaluation(judge: Judge, is_other: bool) -> Evaluation:
    """What the answers are worth; on other data than the validation data by the thresholds that the model has."""
    evaluation = judge.evaluation()
    if isinstance(judge, LabelSetJudge) and isinstance(evaluation, LabelSetEvaluation) and is_other:
        return replace(evaluation, thresholds=judge.thresholds)
    return evaluation


def _recipe(
    path: Path, about: dict[str, Any], saved: SavedRun | None, overrides: Iterable[str], root: Path | None
) -> BaseRecipe:
    """That of the checkpoint, or the one that the file holds, for the data at hand."""
    if saved is not None:
        values = saved.recipe.model_dump()
    elif about["recipe"] is not None:
        values = parse_recipe(parse_page(about["recipe"], f"in {path}"), f"in {path}").model_dump()
    else:
        raise ValueError(f"{path}: of an earlier version, it holds no recipe; name its run: --checkpoint RUN")
    apply_overrides(values, overrides)
    data: Any = values["data"]
    if root is not None:
        data["root"] = root
    elif saved is None and data.get("root") is not None:
        raise ValueError(f"{path} does not say where its data are: pass --data FOLDER, or --checkpoint RUN")
    values["model"]["checkpoint"] = values["ema"] = None
    values.pop("distill", None)
    return parse_recipe(values, f"in {path}")


def _versions() -> dict[str, str]:
    """Of the packages that take part, where they are installed under these names."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_metadata(source: Path, destination: Path, entries: dict[str, str]) -> None:
    """A copy of an exported file with other metadata.

    Raises:
        OSError: The disk is full.
    """
    if source.suffix == ".onnx" or not zipfile.is_zipfile(source):
        import onnx

        model = onnx.load(source)
        known = {entry.key: entry.value for entry in model.metadata_props}
        onnx.helper.set_model_props(model, known | entries)
        onnx.save(model, destination)
        return
    with (
        zipfile.ZipFile(source) as archive,
        zipfile.ZipFile(destination, "w") as copy,
    ):  # stored, as torch does
        top = archive.namelist()[0].split("/")[0]
        added = {f"{top}/extra/{key}": text for key, text in entries.items()}
        for info in archive.infolist():
            if info.filename not in added:
                with archive.open(info) as old, copy.open(info.filename, "w", force_zip64=True) as new:
                    shutil.copyfileobj(old, new)
        for name, text in added.items():
            copy.writestr(name, text)
