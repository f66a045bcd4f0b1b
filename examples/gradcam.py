"""Grad-CAM on the last stage: which part of an image speaks for a class. Needs the package grad-cam."""

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import crossformerpp  # noqa: F401 (registers the models)


def to_nchw(maps: torch.Tensor) -> torch.Tensor:
    """Stages give B H W C, Grad-CAM wants B C H W."""
    return maps.permute(0, 3, 1, 2)


def main(
    picture: str | None = None,
    model_name: str = "crossformerpp_small",
    out: str = "gradcam.png",
    **options: object,
) -> np.ndarray:
    """Args: picture: a file; default: scikit-image's astronaut. model_name: also local-dir:FOLDER."""
    if picture is None:
        from skimage.data import astronaut

        image = Image.fromarray(astronaut())
    else:
        image = Image.open(picture).convert("RGB")
    model = timm.create_model(model_name, pretrained=":" in model_name, **options).eval()
    config = timm.data.resolve_data_config(model=model)
    side = config["input_size"][1]
    image = image.resize((side, side))
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = np.asarray(image, np.float32) / 255
    x = ((torch.from_numpy(pixels).permute(2, 0, 1) - mean) / std)[None]
    best = int(model(x)[0].argmax())
    with GradCAM(model, target_layers=[model.stages[-1]], reshape_transform=to_nchw) as explain:
        heat = explain(input_tensor=x, targets=[ClassifierOutputTarget(best)])[0]
    Image.fromarray(show_cam_on_image(pixels, heat, use_rgb=True)).save(out)
    print(f"class {best}: {Path(out).resolve()}")
    return heat


if __name__ == "__main__":
    main(*sys.argv[1:4])
