"""Predict on a Ray cluster: each worker opens the model once and gets batches of images. Needs ray[data]."""

import json
import sys
from pathlib import Path
from typing import Any

import ray
from PIL import Image

from crossformerpp.data.images import read_image
from crossformerpp.predict import load_predictor, open_images


class Model:
    """One of the processes that Ray starts, with a trained model of any task in it."""

    def __init__(self, run: str, device: str) -> None:
        self.predictor = load_predictor(Path(run), device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        lines: list[dict[str, Any]] = []
        images: list[Image.Image] = []
        for name in batch["item"]:
            try:
                images.append(read_image(name))
                lines.append({"image": name})
            except ValueError as error:
                lines.append({"image": name, "error": str(error)})
        predictions = iter(self.predictor(images))
        for line in lines:
            if "error" not in line:
                line |= next(predictions).to_json()
        return {"line": [json.dumps(line) for line in lines]}


def main(run: str, images: str, out: str, workers: int = 2, gpus: float = 0, batch_size: int = 32) -> int:
    """Write OUT/*.jsonl, the lines of `crossformer predict`; the number of images.

    Args:
        run: A run or checkpoint, on storage that all machines see; so are the images.
        gpus: Per worker.
    """
    names = list(open_images([images]).names)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    data = ray.data.from_items(names).map_batches(
        Model,
        fn_constructor_args=(run, "cuda" if gpus else "cpu"),
        batch_size=batch_size,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / "predictions.jsonl").open("w") as file:
        for row in data.iter_rows():
            file.write(f"{row['line']}\n")
            count += 1
    print(f"{count} images, {folder / 'predictions.jsonl'}")
    return count


if __name__ == "__main__":
    main(*sys.argv[1:4])
