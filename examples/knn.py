"""Features of a frozen backbone and scikit-learn's k-nearest neighbours, on real handwritten digits: half a minute."""

import sys

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

import crossformerpp  # noqa: F401 (registers the models)


@torch.inference_mode()
def features(model: torch.nn.Module, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Images (N, 8, 8) from 0 to 16 -> (N, D4), the pooled features before the head."""
    size = model.pretrained_cfg["input_size"][1]
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    found = []
    for start in range(0, len(images), batch):
        pictures = [
            Image.fromarray((image * 15.9).astype(np.uint8)) for image in images[start : start + batch]
        ]
        grey = np.stack([np.asarray(p.resize((size, size), Image.Resampling.BICUBIC)) for p in pictures])
        x = torch.from_numpy(grey).float().div(255)[:, None].expand(-1, 3, -1, -1)
        found.append(model((x - mean) / std).numpy())
    return np.concatenate(found)


def main(model_name: str = "crossformerpp_small", images: int = 600, **options: object) -> float:
    """Args: model_name: also local-dir:FOLDER of `crossformer share`, whose features have learnt something."""
    model = timm.create_model(model_name, pretrained=":" in model_name, num_classes=0, **options).eval()
    digits = load_digits()
    x, y = features(model, digits.images[:images]), digits.target[:images]
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
    accuracy = KNeighborsClassifier(5, metric="cosine").fit(x_train, y_train).score(x_test, y_test)
    print(f"{model_name}: {accuracy:.4f} of {len(y_test)} digits")
    return accuracy


if __name__ == "__main__":
    main(*sys.argv[1:2])
