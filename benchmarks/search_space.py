"""How many group settings there are to choose from, and what they cost: S3's space, {7, 14}, beside ours.

    python -m benchmarks.search_space --model crossformerpp_small --size 224
    python -m benchmarks.search_space --run RUN

Settings that group every map alike count once. S3 (Chen et al., 2021) searches window sizes of 7 and 14; the paper
(Sec. 4.1) calls for any from 4 to 14.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.analysis.group_costs import GroupCosts
from crossformerpp.layers.group_size import Groups

S3, OURS = (7, 14), tuple(range(4, 15))


def settings(groups: Groups, choices: tuple[int, ...]) -> Iterator[Groups]:
    """Every choice of one size per stage."""
    for sizes in itertools.product(choices, repeat=len(groups.group_sizes)):
        stages = zip(sizes, groups.group_sizes, strict=True)
        yield groups._replace(group_sizes=tuple((size,) * len(blocks) for size, blocks in stages))


def row(name: str, groups: Groups, choices: tuple[int, ...], costs: GroupCosts) -> str:
    """Of the table: distinct settings, and multiply-accumulates from the cheapest to the costliest."""
    found = {costs.key(setting): setting for setting in settings(groups, choices)}
    macs = sorted(costs.macs(setting) for setting in found.values())
    return f"| {name} | {len(found)} | {macs[0] / 1e6:,.2f}M | {macs[-1] / 1e6:,.2f}M |"


def _open(arguments: argparse.Namespace) -> tuple[Any, Callable[[], Any]]:
    if arguments.run is not None:
        from crossformerpp.tasks.network import open_network

        network = open_network(str(arguments.run))
        model, size = network.model, network.size
    else:
        model, size = timm.create_model(arguments.model).eval(), arguments.size
    images = torch.zeros(1, 3, size, size)
    return model, lambda: model(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="crossformerpp_small")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--run", type=Path, help="a classifier's run in the place of a model")
    model, call = _open(parser.parse_args())
    costs = GroupCosts(model, call)
    print("| space, one size per stage | distinct settings | cheapest | costliest |\n|---|---|---|---|")
    print(row("S3's, {7, 14}", model.groups, S3, costs))
    print(row("4 to 14", model.groups, OURS, costs))


if __name__ == "__main__":
    main()
