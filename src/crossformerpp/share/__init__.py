"""A trained model as a folder for the Hugging Face Hub: weights, config, a model card, a page to try it.

    model.safetensors   the weights
    config.json         for classifiers in timm's format, for all with the recipe and the class names
    README.md           the card, with metrics and pictures of the run's evaluation
    app.py              a Gradio page, see `page`; requirements.txt names what it needs
    conformal.json      a classifier's threshold, if it was calibrated
    thresholds.json     those of a multi-label classifier

`from_pretrained` opens it. timm reads classifiers from the disk, `timm.create_model("local-dir:FOLDER")`, or from the
Hub once they are pushed, `timm.create_model("hf-hub:USER/NAME")`, after `import crossformerpp`.
"""

import errno
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

import crossformerpp
from crossformerpp.analysis.predictions import Predictor
from crossformerpp.data.names import read_json
from crossformerpp.data.writing import refuse_taken, replacing_folder, write_json, write_picture
from crossformerpp.recipes.classification import ClassificationData, ClassificationRecipe
from crossformerpp.recipes.load import dump_recipe, without_paths
from crossformerpp.share.card import model_card
from crossformerpp.tasks import find_task
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.classification import crop_share, thresholds
from crossformerpp.tasks.classification.promise import FILE, promise_file, read_promise
from crossformerpp.tasks.hub import PREFIX
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import CONFIG, SHARED_KEY, WEIGHTS, SavedRun, open_saved, pack

_PICTURES = ("predictions.png", "overlays.png")  # of a run's evaluation
_WIDEST = 1600  # pixels of a picture
_REQUIREMENTS = """# crossformerpp is not on an index yet: install it from a checkout, pip install .
gradio>=5
"""
_FILES = [
    WEIGHTS,
    CONFIG,
    "README.md",
    "app.py",
    "requirements.txt",
    FILE,
    thresholds.FILE,
    *_PICTURES,
]  # what is pushed


def from_pretrained(address: str | Path, device: str = "cpu", **options: Any) -> Predictor[Any]:
    """A predictor on a shared model: call it with an RGB picture; `.model` is its network.

    Args:
        address: A folder of `crossformer share`, or USER/NAME on the Hugging Face Hub.
        options: The task's own, e.g. `top_k` or `min_score`.

    Raises:
        ValueError: There is none, or it cannot be used.
    """
    path = Path(address)
    if not path.exists() and not str(address).startswith(PREFIX):
        path = Path(f"{PREFIX}{address}")
    saved = open_saved(path)
    return find_task(saved.recipe.task).predictor(saved, device=device, **options)


def write_folder(
    run: Path,
    folder: Path,
    *,
    license: str = "apache-2.0",
    repo: str | None = None,
    pictures: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the folder of a trained model, its card filled from the run.

    Args:
        license: Of the weights, as the Hub abbreviates it.
        repo: USER/NAME under which it will be found on the Hub, for the card.
        pictures: Show those of the run's evaluation, which are of its validation data.

    Raises:
        ValueError: The run cannot be used, or the folder holds something.
    """
    saved = open_saved(run)
    data: Any = getattr(saved.recipe, "data", None)
    if not data.pixels.is_photograph:
        raise ValueError(
            f"{run}: a model of images with {data.channels} channel(s); the page and the card of a shared folder show "
            "RGB photographs only. Hand on the run itself, or `crossformer export` it"
        )
    refuse_taken(folder, overwrite)
    shown = [name for name in _PICTURES if pictures and (run / name).is_file()]
    address = f"{PREFIX}{repo}" if repo else f"local-dir:{folder.name}"
    card = model_card(saved, _metrics(run), license, address, shown)
    try:
        with replacing_folder(folder) as draft:
            if isinstance(saved.recipe, ClassificationRecipe):
                _write_classifier(saved, saved.recipe, draft, license)
            else:
                _write_weights(saved, draft)
            _describe(saved, draft)
            (draft / "README.md").write_bytes(card.encode("utf-8", "backslashreplace"))
            (draft / "app.py").write_bytes((files(crossformerpp) / "share" / "page.py").read_bytes())
            (draft / "requirements.txt").write_text(_REQUIREMENTS)
            for name in shown:
                with Image.open(run / name) as picture:
                    picture.thumbnail((_WIDEST, _WIDEST))
                    write_picture(draft / name, picture)
            written = {path.name for path in draft.iterdir()}
        for name in set(_FILES) - written:  # of a folder that was written before, perhaps with pictures
            (folder / name).unlink(missing_ok=True)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"could not be written: {error}", str(folder)) from None
    return folder


def _write_classifier(saved: SavedRun, recipe: ClassificationRecipe, draft: Path, license: str) -> None:
    """For timm."""
    model = create_model(recipe.model, num_classes=len(saved.class_names))
    load_weights(model, saved.weights, saved.path)
    data: ClassificationData = recipe.data
    config = {
        "input_size": (3, data.size, data.size),
        "crop_pct": crop_share(data),
        "interpolation": data.interpolation,
        "mean": data.mean,
        "std": data.std,
        "num_classes": len(saved.class_names),
        "label_names": saved.class_names,
        "license": license,
    }
    save_model(model, draft, config, recipe.model.options)
    if recipe.multi_label:
        if (kept := thresholds.thresholds_file(saved)).is_file():
            (draft / thresholds.FILE).write_bytes(kept.read_bytes())
    elif read_promise(saved) is not None:
        (draft / FILE).write_bytes(promise_file(saved).read_bytes())


def _write_weights(saved: SavedRun, draft: Path) -> None:
    """As they are, once the model takes them."""
    find_task(saved.recipe.task).predictor(saved, device="cpu")
    weights = {key: value.contiguous() for key, value in saved.weights.items()}
    save_file(weights, draft / WEIGHTS, metadata={"format": "pt"})
    write_json(draft / CONFIG, {"library_name": "crossformerpp"})


def _describe(saved: SavedRun, draft: Path) -> None:
    """What `open_saved` reads, into config.json."""
    config = json.loads((draft / CONFIG).read_text(encoding="utf-8"))
    recipe = dump_recipe(without_paths(saved.recipe.model_copy(update={"ema": None})))
    if getattr(saved.recipe, "multi_label", False):
        config["problem_type"] = (
            "multi_label_classification"  # for transformers' pipeline: a sigmoid, no softmax
        )
    write_json(draft / CONFIG, config | {SHARED_KEY: pack(recipe, saved.class_names, saved.step)})


def save_model(
    model: nn.Module, folder: Path, config: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> None:
    """model.safetensors and config.json of a timm model, for timm and for transformers' TimmWrapper.

    Args:
        config: What differs from the model's own `pretrained_cfg`, and `label_names`.
        options: Other arguments than the number of classes with which the model was made.
    """
    model_config: dict[str, Any] = {"pretrained_cfg": dict(config), "model_args": dict(options or {})}
    if "label_names" in config:  # where TimmWrapper looks for them
        model_config["label_names"] = model_config["pretrained_cfg"].pop("label_names")
    save_for_hf(model, str(folder), model_config=model_config, safe_serialization=True)
    path = folder / "config.json"
    page = json.loads(path.read_text(encoding="utf-8"))
    page["model_args"].pop("num_classes", None)  # stands beside it, and TimmWrapper would pass it twice
    write_json(path, page)


def push(folder: Path, repo: str) -> str:
    """Upload the folder to the Hub, as whom `hf auth login` knows; its address.

    Raises:
        ValueError: The Hub refuses; says why.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="crossformerpp", library_version=crossformerpp.__version__)
    try:
        api.create_repo(repo, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=_FILES))
    except Exception as error:  # the library's own, those of its HTTP client, of the disk
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{repo} was not pushed ({reason}); the folder {folder} is complete") from None


def _metrics(run: Path) -> dict[str, Any]:
    """Of the run's final evaluation; none where only a file is left."""
    path = run / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    if not isinstance(metrics, dict):
        raise ValueError(
            f"{path}: damaged, it holds no metrics; `crossformer train --resume {run}` writes it again"
        )
    return metrics
