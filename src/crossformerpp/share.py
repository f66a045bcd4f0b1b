"""A trained classifier as a folder for the Hugging Face Hub: model.safetensors, config.json, a model card.

timm reads it from the disk, `timm.create_model("local-dir:FOLDER")`, or from the Hub once it is pushed,
`timm.create_model("hf-hub:USER/NAME")`, after `import crossformerpp`.
"""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import nn

import crossformerpp
from crossformerpp.data.names import read_json
from crossformerpp.data.writing import refuse_taken, replacing_folder, write_json
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.load import dump_recipe, without_paths
from crossformerpp.tasks.backbone import create_model
from crossformerpp.tasks.classification import crop_share
from crossformerpp.tasks.loading import load_weights
from crossformerpp.tasks.saved import SavedRun, open_saved

_CARD = """---
{header}---

# {name}

`{name}` with {num_classes} classes, trained with crossformerpp
{version}: CrossFormer and CrossFormer++ (Wang et al., TPAMI, [arXiv 2303.06908](https://arxiv.org/abs/2303.06908)).

```python
import crossformerpp, timm  # the first registers the model

model = timm.create_model("{address}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
```

Classes: {classes}.

## Metrics

{metrics}

## Recipe

```yaml
{recipe}```

## Licence

{license}
"""
_NUM_SHOWN = 50  # classes named on the card
_FILES = ["model.safetensors", "config.json", "README.md"]  # what is pushed


def write_folder(
    run: Path, folder: Path, *, license: str = "apache-2.0", repo: str | None = None, overwrite: bool = False
) -> Path:
    """Write the folder of a trained classifier, its card filled from the run.

    Args:
        license: Of the weights, as the Hub abbreviates it.
        repo: USER/NAME under which it will be found on the Hub, for the card.

    Raises:
        ValueError: It is no classifier, or the folder holds something.
    """
    saved = open_saved(run)
    recipe = saved.recipe
    if not isinstance(recipe, ClassificationRecipe):
        raise ValueError(f"{run}: of task {recipe.task}; what is shared with timm's format is a classifier")
    model = create_model(recipe.model, num_classes=len(saved.class_names))
    load_weights(model, saved.weights, saved.path)
    data = recipe.data
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
    refuse_taken(folder, overwrite)
    card = model_card(saved, _metrics(run), license, f"hf-hub:{repo}" if repo else f"local-dir:{folder.name}")
    try:
        with replacing_folder(folder) as draft:
            save_model(model, draft, config, recipe.model.options)
            (draft / "README.md").write_bytes(card.encode("utf-8", "backslashreplace"))
    except SafetensorError as error:
        raise OSError(errno.EIO, f"could not be written: {error}", str(folder)) from None
    return folder


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
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="crossformerpp", library_version=crossformerpp.__version__)
    try:
        api.create_repo(repo, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=_FILES))
    except (HfHubHTTPError, ValueError, OSError) as error:
        raise ValueError(f"{repo} was not pushed ({error}); the folder {folder} is complete") from None


def model_card(saved: SavedRun, metrics: dict[str, Any], license: str, address: str) -> str:
    """The card: YAML header for the Hub, use, classes, metrics, recipe, licence."""
    name, classes = saved.recipe.model.name, saved.class_names
    header: dict[str, Any] = {
        "license": license,
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "crossformerpp"],
    }
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    table = [
        "| metric | value |",
        "|---|---|",
        *(f"| {key} | {value:.4g} |" for key, value in numbers.items()),
    ]
    more = f" and {len(classes) - _NUM_SHOWN} more" if len(classes) > _NUM_SHOWN else ""
    return _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        name=name,
        num_classes=len(classes),
        version=crossformerpp.__version__,
        address=address,
        classes=", ".join(classes[:_NUM_SHOWN]) + more,
        metrics="\n".join(table) if numbers else "Not evaluated.",
        recipe=dump_recipe(without_paths(saved.recipe)),
        license=f"The weights are under {license}.",
    )


def _metrics(run: Path) -> dict[str, Any]:
    """Of the run's final evaluation; none where only a file is left."""
    path = run / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    if not isinstance(metrics, dict):
        raise ValueError(
            f"{path}: damaged, it holds no metrics; `crossformer train --resume {run}` writes it again"
        )
    return metrics
