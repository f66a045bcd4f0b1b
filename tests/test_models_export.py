"""Export and compilation, with fixed and with symbolic sizes."""

import pytest
import timm
import torch
from packaging.version import Version
from torch.export import Dim

import crossformerpp  # noqa: F401

OPTIONS = {"embed_dim": 32, "depths": (1, 2, 2, 1), "num_heads": (1, 2, 4, 8), "num_classes": 10}


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    torch._dynamo.reset()
    return timm.create_model("crossformerpp_small", **OPTIONS).eval()


def _assert_same(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


@pytest.fixture(params=["regional", "spanning"])
def either(request) -> torch.nn.Module:
    torch.manual_seed(0)
    torch._dynamo.reset()
    return timm.create_model("crossformerpp_small", **OPTIONS, lda=request.param).eval()


@torch.no_grad()
def test_export_of_one_size(either):
    x = torch.randn(2, 3, 100, 132)
    _assert_same(torch.export.export(either, (x,)).module()(x), either(x))


@pytest.mark.slow
@torch.no_grad()
def test_export_with_symbolic_sizes(either):
    model = either
    sizes = {
        0: Dim("batch", min=1, max=64),
        2: Dim("height", min=288, max=2048),
        3: Dim("width", min=288, max=2048),
    }
    program = torch.export.export(model, (torch.randn(2, 3, 320, 352),), dynamic_shapes=(sizes,)).module()
    for shape in [(1, 3, 320, 352), (3, 3, 384, 512), (2, 3, 333, 401)]:
        x = torch.randn(shape)
        _assert_same(program(x), model(x))


@torch.no_grad()
def test_compiled_graph_is_whole_and_serves_every_size(either):
    """Captured once for symbolic sizes: no graph break and, batch and sizes apart, no second graph."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    model, compiled = either, torch.compile(either, fullgraph=True, dynamic=True, backend=backend)
    for shape in [(2, 3, 256, 320), (3, 3, 64, 96), (4, 3, 131, 224), (5, 3, 448, 100)]:
        x = torch.randn(shape)
        _assert_same(compiled(x), model(x))
    # with PyTorch 2.11 results are the same, but its compiler makes a graph for each of these sizes
    assert len(graphs) == 1 or Version(torch.__version__) < Version("2.14")


class _Doubled(torch.nn.Linear):
    """As adapters are: a layer in another one's place, which must not be passed over."""

    def forward(self, x):
        return 2 * super().forward(x)


def _tells_compiling_from_exporting():
    """PyTorch 2.11 does not: inside `torch.compile` it says that it exports, and the plain layers are compiled."""
    torch._dynamo.reset()
    return not torch.compile(lambda x: x + int(torch.compiler.is_exporting()), backend="eager")(
        torch.zeros(1)
    )


@pytest.mark.skipif(
    not _tells_compiling_from_exporting(), reason="this PyTorch takes compiling for exporting"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_compiled_inference_takes_whole_blocks_of_the_parts_they_were_built_with(model, dtype):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    mlp = model.stages[1].blocks[0].mlp
    doubled = _Doubled(mlp.fc1.in_features, mlp.fc1.out_features)
    doubled.load_state_dict(mlp.fc1.state_dict())
    model = model.to(dtype)
    x = torch.randn(2, 3, 75, 110, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02 * float(model(x).abs().max())
    for replaced, expected in ((False, 6), (True, 5)):
        if replaced:
            mlp.fc1 = doubled.to(dtype)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
        _assert_same(compiled(x), model(x), atol=tolerance)
        operators = [node.target for node in graphs.pop().graph.nodes if node.op == "call_function"]
        assert operators.count(torch.ops.crossformerpp.block.default) == expected


@torch.no_grad()
def test_dropout_switched_on_alone_stays_on_in_a_compiled_model():
    torch._dynamo.reset()
    model = timm.create_model("crossformerpp_small", **OPTIONS, proj_drop_rate=0.5).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(compiled(x), compiled(x))
    assert not torch.equal(model(x), model(x))


def test_compiled_graph_with_symbolic_sizes_trains(model):
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 3, 64, 96), (3, 3, 75, 110)]:
        x = torch.randn(shape)
        gradients = []
        for module in (model, compiled):
            model.zero_grad()
            module(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
        for a, b in zip(*gradients, strict=True):
            _assert_same(a, b, atol=5e-4 * max(1.0, a.abs().max().item()))  # the bias MLP is float32


@pytest.mark.slow
@torch.no_grad()
def test_inductor_equals_eager():
    torch._dynamo.reset()
    model = timm.create_model("crossformerpp_small", **{**OPTIONS, "depths": (1, 2, 1, 1)}).eval()
    x = torch.randn(2, 3, 72, 64)
    _assert_same(torch.compile(model, fullgraph=True)(x), model(x))
