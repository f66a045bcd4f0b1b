"""transformers: a trained classifier as TimmWrapper, from and to local folders, as the Trainer takes it.

The first folder is one of `crossformer share`; without one, fresh weights are saved as it would.
"""

import sys
import tempfile
from pathlib import Path

import timm
import torch
from transformers import AutoModelForImageClassification

from crossformerpp.share import save_model


def fresh_folder(folder: Path, **options: object) -> Path:
    """A folder as `crossformer share` writes it."""
    model = timm.create_model("crossformerpp_small", num_classes=3, **options)
    names = {"label_names": ["cat", "dog", "owl"], "num_classes": 3}
    save_model(model, folder, names, options)
    return folder


def main(shared: str | None = None, size: int = 224, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = shared or fresh_folder(Path(temporary) / "shared", **options)
        model = AutoModelForImageClassification.from_pretrained(folder).eval()
        model.save_pretrained(Path(temporary) / "again")
        again = AutoModelForImageClassification.from_pretrained(Path(temporary) / "again").eval()
        images = torch.rand(1, 3, size, size)
        with torch.no_grad():
            first, second = model(images).logits, again(images).logits
    print(model.config.id2label, first, "the same after saving and loading:", torch.equal(first, second))
    return first, second


if __name__ == "__main__":
    main(*sys.argv[1:2])
