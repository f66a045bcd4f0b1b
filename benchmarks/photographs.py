"""A folder of JPEG photographs, to measure what reads files: views of those of scikit-learn and scikit-image."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from skimage import data
from sklearn.datasets import load_sample_images

SIZE = (500, 375)  # ImageNet's most frequent


def write_photographs(folder: Path, number: int, size: tuple[int, int] = SIZE, seed: int = 0) -> list[Path]:
    """So many different views of real photographs: crops, mirrored and of varied brightness, at JPEG quality 90."""
    generator = np.random.default_rng(seed)
    pixels = [*load_sample_images().images, data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    sources = [Image.fromarray(image) for image in pixels]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place in range(number):
        source = sources[place % len(sources)]
        share = generator.uniform(0.5, 1)
        width, height = (int(side * share) for side in source.size)
        left, top = (
            int(generator.integers(0, all_ - part + 1))
            for all_, part in zip(source.size, (width, height), strict=True)
        )
        view = source.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        if generator.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        view = ImageEnhance.Brightness(view).enhance(generator.uniform(0.7, 1.3))
        paths.append(folder / f"{place:06d}.jpg")
        view.save(paths[-1], quality=90)
    return paths
