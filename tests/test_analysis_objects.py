"""Drawn objects can be seen and read, whatever the image."""

import numpy as np
import pytest
from PIL import Image

from crossformerpp.analysis.objects import DrawnObject, contact_sheet, draw_objects, label_color
from crossformerpp.data.masks import encode_mask


def test_colors_of_neighbouring_labels_differ():
    colors = np.array([label_color(label) for label in range(91)], float)
    assert np.abs(colors[1:] - colors[:-1]).sum(1).min() > 120


@pytest.mark.parametrize("size", [(40, 30), (640, 480), (5000, 60), (33, 400)])
def test_boxes_masks_and_names_are_drawn_inside(size):
    image = Image.new("RGB", size, (128, 128, 128))
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[height // 2, width // 2] = 1
    objects = [
        DrawnObject((0, 0, width, height), "giraffe with a very long name", 3, 0.98, encode_mask(mask)),
        DrawnObject((width - 5, height - 5, width, height), "x", 4, 0.51),
    ]
    drawn = draw_objects(image, objects)
    factor = drawn.width // width
    assert drawn.size == (width * factor, height * factor)
    assert max(drawn.size) >= 320
    pixels = np.asarray(drawn)
    assert (pixels == label_color(3)).all(-1).any()
    assert (pixels == label_color(4)).all(-1).any()
    assert np.asarray(image).std() == 0, "the original stays as it was"


def test_a_mask_tints_what_it_covers_and_nothing_else():
    image = Image.new("RGB", (400, 400), (10, 10, 10))
    mask = np.zeros((400, 400), np.uint8)
    mask[300:350, 300:350] = 1
    pixels = np.asarray(
        draw_objects(image, [DrawnObject((290, 290, 360, 360), "a", 0, 0.9, encode_mask(mask))])
    )
    assert (pixels[325, 325] != 10).any()
    assert (pixels[200, 200] == 10).all()


def test_a_sheet_holds_all_pictures():
    pictures = [Image.new("RGB", (500, 300), label_color(number)) for number in range(5)]
    sheet = contact_sheet(pictures, ["truth", "prediction", "", "", ""], columns=2, side=100)
    assert sheet.size == (200, 300)
    assert (np.asarray(sheet)[:20, :100] < 128).all(-1).any(), "a heading"
    colors = {tuple(pixel) for pixel in np.asarray(sheet).reshape(-1, 3)}
    assert {label_color(number) for number in range(5)} <= colors
