"""Pictures of layers show what the paper defines."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from crossformerpp.analysis import layer_pictures
from crossformerpp.layers import GroupRule


@pytest.mark.parametrize(("height", "width"), [(8, 8), (11, 9), (7, 30), (16, 5)])
@pytest.mark.parametrize(("group_size", "interval"), [(4, 1), (4, 2), (3, 4)])
def test_group_numbers_are_the_definitions(height: int, width: int, group_size: int, interval: int) -> None:
    rule = GroupRule("short" if interval == 1 else "long", group_size, interval)
    numbers = layer_pictures.group_numbers(height, width, rule)
    region = group_size * interval
    members: dict[tuple[int, ...], set[int]] = {}
    for (y, x), number in np.ndenumerate(numbers):
        key = (y // region, x // region, y % interval, x % interval)
        members.setdefault(key, set()).add(int(number))
    assert all(len(found) == 1 for found in members.values())  # one number per group,
    assert set.union(*members.values()) == set(range(len(members)))  # another for every group


def test_a_small_map_is_one_group() -> None:
    assert not layer_pictures.group_numbers(4, 9, GroupRule("long", 4, 2)).any()


def test_groups_are_drawn_token_by_token_and_counted() -> None:
    rules = [GroupRule("short", 4), GroupRule("long", 4, 2), GroupRule("long", 4, 2, "spanning")]
    sda, regional, spanning = layer_pictures.groups([(11, 9)], rules).axes
    assert sum(isinstance(patch, Rectangle) for patch in regional.patches) == len(regional.texts) == 99
    assert "SDA, G = 4\nmap 11×9: 9 groups of\n4×4, 4×1, 3×4, 3×1" in sda.get_title()
    assert "regional LDA, G = 4, I = 2\nmap 11×9: 12 groups of\n4×4, " in regional.get_title()
    assert "spanning LDA, I = 2\nmap 11×9: 4 groups of\n6×5, 6×4, 5×5, 5×4" in spanning.get_title()


def test_an_embedding_shows_each_kernel_around_one_centre() -> None:
    patches, _ = layer_pictures.embedding((4, 8, 16), stride=4, dim=48).axes
    centres = {(patch.get_x() + patch.get_width() / 2, patch.get_width() % 4) for patch in patches.patches}
    assert len(centres) == 1
    assert {patch.get_width() for patch in patches.patches} == {4, 8, 16}
