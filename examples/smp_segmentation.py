"""segmentation_models.pytorch: our backbones are called tu-NAME, in every architecture that takes timm's."""

import segmentation_models_pytorch as smp
import torch

import crossformerpp  # noqa: F401 (registers the models)

ARCHITECTURES = (smp.Unet, smp.FPN, smp.UPerNet, smp.Segformer)


def main(name: str = "crossformerpp_small", size: int = 256) -> dict[str, tuple[int, ...]]:
    images, truth = torch.rand(2, 3, size, size), torch.randint(4, (2, size, size))
    criterion = smp.losses.DiceLoss("multiclass")
    shapes = {}
    for architecture in ARCHITECTURES:
        model = architecture(f"tu-{name}", encoder_weights=None, classes=4)
        logits = model(images)
        criterion(logits, truth).backward()
        shapes[architecture.__name__] = tuple(logits.shape)
        print(architecture.__name__, shapes[architecture.__name__])
    return shapes


if __name__ == "__main__":
    main()
