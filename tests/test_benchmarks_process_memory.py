"""Memory of exports can be given back: nothing of their symbolic sizes stays alive."""

import gc

import torch
from benchmarks.process_memory import give_back
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def alive() -> list[int]:
    gc.collect()
    types = [type(x) for x in gc.get_objects()]
    return [sum(issubclass(x, kind) for x in types) for kind in (ShapeEnv, FakeTensor)]


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[: x.shape[0] // 2] * x.shape[1], x[x.shape[0] // 2 :]]).relu()


def test_nothing_of_an_export_stays() -> None:
    give_back()
    before = alive()
    size = torch.export.Dim.DYNAMIC
    for _ in range(2):
        torch.export.export(Halves(), (torch.randn(4, 6),), dynamic_shapes=({0: size, 1: size},))
    assert alive()[0] >= before[0] + 1, "PyTorch frees them itself now: `_forget_symbols` is no longer needed"
    give_back()
    assert alive() == before


def test_an_exported_program_runs_afterwards() -> None:
    size = torch.export.Dim.DYNAMIC
    program = torch.export.export(Halves(), (torch.randn(4, 6),), dynamic_shapes=({0: size, 1: size},))
    give_back()
    x = torch.randn(6, 3)
    torch.testing.assert_close(program.module()(x), Halves()(x))
    assert program.run_decompositions().module()(x).shape == (6, 3)
