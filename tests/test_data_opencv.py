"""Resizing to the bit as OpenCV: checksums recorded from OpenCV 4.5.5 and 5.0.0, which agree."""

import zlib

import pytest
import torch

from crossformerpp.data.opencv import resize_bytes
from released import drawn_picture

# old height and width, seed, new height and width, CRC-32 of cv2.resize(…, interpolation=cv2.INTER_LINEAR)
RECORDED = [
    (300, 412, 2, 160, 220, 1562518756),
    (75, 101, 3, 160, 215, 2983034845),
    (480, 640, 6, 800, 1067, 3371058733),
    (640, 427, 7, 1199, 800, 185883512),
    (33, 47, 9, 32, 64, 1538474061),
    (500, 375, 10, 250, 188, 2950173919),
    (512, 640, 11, 256, 640, 769014210),
    (512, 640, 11, 256, 320, 932444514),  # halves
    (40, 64, 12, 20, 32, 3010419175),
]


@pytest.mark.parametrize(("height", "width", "seed", "to_height", "to_width", "checksum"), RECORDED)
def test_every_byte_is_opencv_s(height, width, seed, to_height, to_width, checksum):
    image = torch.from_numpy(drawn_picture(height, width, seed)).permute(2, 0, 1)
    resized = resize_bytes(image, (to_height, to_width))
    assert zlib.crc32(resized.permute(1, 2, 0).contiguous().numpy().tobytes()) == checksum


def test_an_image_of_the_right_size_and_one_of_one_colour_stay():
    image = torch.from_numpy(drawn_picture(20, 30, 1)).permute(2, 0, 1)
    assert torch.equal(resize_bytes(image, [20, 30]), image)
    assert resize_bytes(torch.full((3, 11, 7), 200, dtype=torch.uint8), (5, 29)).unique().tolist() == [200]
