"""The model card of a shared folder: YAML header for the Hub, use, classes, metrics, pictures, recipe, licence."""

import html
import re
from collections.abc import Sequence
from typing import Any

import yaml

import crossformerpp
from crossformerpp.recipes.load import dump_recipe, without_paths
from crossformerpp.tasks.saved import SavedRun

_TIMM = """import crossformerpp, timm  # the first registers the model

model = timm.create_model("{address}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))"""
_PREDICTOR = """import crossformerpp
from crossformerpp.data.images import read_image  # upright RGB, as the command line reads it

predictor = crossformerpp.from_pretrained("{place}")
predictor(read_image("photograph.jpg")).to_json()  # predictor.model is the network"""
_CARD = """---
{header}---

# {name}

`{name}` for {purpose} with {num_classes} classes, trained with crossformerpp
{version}: CrossFormer and CrossFormer++ (Wang et al., TPAMI, [arXiv 2303.06908](https://arxiv.org/abs/2303.06908)).

```python
{use}
```

On the command line: `crossformer predict {address} photograph.jpg`. As a page: `pip install -r requirements.txt`, then
`python app.py`.

Classes: {classes}.

## Metrics

{metrics}
{pictures}
## Recipe

```yaml
{recipe}```

## Licence

{license}
"""
_PURPOSES = {
    "classification": "image classification",
    "detection": "object detection",
    "segmentation": "segmentation",
}
_PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}
_NUM_SHOWN = 50  # classes named on the card


def model_card(
    saved: SavedRun, metrics: dict[str, Any], license: str, address: str, pictures: Sequence[str] = ()
) -> str:
    """The text of README.md.

    Args:
        address: hf-hub:USER/NAME, or local-dir:FOLDER.
        pictures: File names in the folder.
    """
    recipe, classes = saved.recipe, saved.class_names
    is_classifier = recipe.task == "classification"
    header: dict[str, Any] = {
        "license": license,
        "library_name": "timm" if is_classifier else "crossformerpp",
        "pipeline_tag": _PIPELINES[recipe.task],
        "tags": [_PIPELINES[recipe.task], *(["timm"] if is_classifier else []), "crossformerpp"],
    }
    place = address.split(":", 1)[-1]
    use = [_TIMM.format(address=address)] if is_classifier else []
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    table = [
        "| metric | value |",
        "|---|---|",
        *(f"| {key} | {value:.4g} |" for key, value in numbers.items()),
    ]
    more = f" and {len(classes) - _NUM_SHOWN} more" if len(classes) > _NUM_SHOWN else ""
    shown = "\n".join(f"![Predictions on validation data]({name})" for name in pictures)
    return _CARD.format(
        header=yaml.safe_dump(header, sort_keys=False),
        name=recipe.model.name,
        purpose=_PURPOSES[recipe.task],
        num_classes=len(classes),
        version=crossformerpp.__version__,
        use="\n\n".join([*use, _PREDICTOR.format(place=place)]),
        address=address if address.startswith("hf-hub:") else place,
        classes=", ".join(map(_as_text, classes[:_NUM_SHOWN])) + more,
        metrics="\n".join(table) if numbers else "Not evaluated.",
        pictures=f"\n## Pictures\n\n{shown}\n" if pictures else "",
        recipe=dump_recipe(without_paths(recipe)),
        license=f"The weights are under {license}.",
    )


def _as_text(name: str) -> str:
    """A name in one line of Markdown, whatever it holds: no HTML, link or emphasis comes of it."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(" ".join(name.split()), quote=False))
