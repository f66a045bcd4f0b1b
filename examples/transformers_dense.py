"""transformers: a CrossFormer++ as TimmBackbone in UperNet (semantic segmentation) and in DETR (detection)."""

import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    TimmBackboneConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import crossformerpp  # noqa: F401 (registers the models)


def main(name: str = "crossformerpp_small", size: int = 256) -> dict[str, tuple[int, ...]]:
    images = torch.rand(2, 3, size, size + 32)
    four = TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=[0, 1, 2, 3])
    segmenter = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=four, num_labels=5, hidden_size=64, auxiliary_in_channels=256)
    )
    truth = torch.randint(5, (2, size, size + 32))
    segmented = segmenter(images, labels=truth)
    segmented.loss.backward()

    last = TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=[3])
    detector = DetrForObjectDetection(
        DetrConfig(backbone_config=last, num_labels=5, num_queries=10, encoder_layers=1, decoder_layers=1)
    )
    detected = detector(images)
    shapes = {
        "UperNet": tuple(segmented.logits.shape),
        "DETR": tuple(detected.pred_boxes.shape),
    }
    print(shapes)
    return shapes


if __name__ == "__main__":
    main()
