"""`crossformer analyze`: what happens inside networks."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossformerpp.cli import budget
from crossformerpp.cli.output import say, show_json, show_table, track
from crossformerpp.cli.train import AsJson, Overwrite

if TYPE_CHECKING:
    from torch import Tensor

    from crossformerpp.analysis.attention_maps import BlockAttention
    from crossformerpp.analysis.group_choice import GroupChoices
    from crossformerpp.tasks.network import Network

app = typer.Typer(
    help="Inspect models: amplitude, attention, architecture, group sizes, accuracy against cost.",
    no_args_is_help=True,
)
app.command()(budget.budget)
app.command()(budget.cascade)

Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        help="An image or a folder of images; may be repeated. Default: twelve built-in photographs.",
    ),
]
Size = Annotated[
    int | None, typer.Option(min=32, help="Side of the images in pixels; default: the run's, or 224.")
]
Options = Annotated[str, typer.Option(help="Model options as YAML, e.g. 'cooling: 3'.")]
Out = Annotated[
    Path | None, typer.Option(help="Output folder; default: analysis, or analysis-2, … if it exists.")
]


@app.command()
def amplitude(
    models: Annotated[list[str], typer.Argument(help="Runs, checkpoints or timm model names.")],
    images: Images = None,
    size: Size = None,
    options: Options = "{}",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure the maximal and mean |output| of every block (Fig. 5 of the paper)."""
    from crossformerpp.analysis.amplitude import block_amplitudes
    from crossformerpp.analysis.block_pictures import amplitude_curves

    networks = [_open(name, options, size) for name in models]
    folder = _claim(out, overwrite)
    found = {network.name: block_amplitudes(network.model, _batches(network, images)) for network in networks}
    rows = [{"model": name} | asdict(block) for name, blocks in found.items() for block in blocks]
    _write_csv(rows, folder / "amplitude.csv")
    amplitude_curves(found, folder / "amplitude.png")
    if as_json:
        show_json(rows)
        return
    show_table(
        ("model", "stage", "block", "maximal", "mean"),
        [
            (
                row["model"],
                str(row["stage"]),
                str(row["block"]),
                f"{row['maximum']:.2f}",
                f"{row['mean']:.3f}",
            )
            for row in rows
        ],
    )
    say(f"amplitude.csv and amplitude.png are in {folder}")


@app.command()
def attention(
    model: Annotated[str, typer.Argument(help="A run, a checkpoint or a timm model name.")],
    tokens: Annotated[
        list[str],
        typer.Option(
            "--token", help="Position Y,X of a token, as fractions of the group's sides; may be repeated."
        ),
    ] = ["0.5,0.5", "0.2,0.3"],  # noqa: B006
    images: Images = None,
    size: Size = None,
    options: Options = "{}",
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Average the attention maps of tokens (Fig. 4, Eq. 3-5) and measure attention distances per head."""
    from crossformerpp.analysis.attention_maps import block_attentions
    from crossformerpp.analysis.block_pictures import attention_distances, attention_pictures

    places = [_place(text) for text in tokens]
    network = _open(model, options, size)
    folder = _claim(out, overwrite)
    blocks = block_attentions(network.model, _batches(network, images))
    attention_pictures(blocks, places, folder / "attention_maps.png")
    attention_distances(blocks, folder / "attention_distance.png")
    _write_csv(_map_rows(blocks, places), folder / "attention_maps.csv")
    rows = list(_distance_rows(blocks))
    _write_csv(rows, folder / "attention_distance.csv")
    if as_json:
        show_json(rows)
        return
    show_table(
        ("block", "group", "interval", "distance in tokens", "if even", "in pixels"),
        [
            (
                f"{block.stage}.{block.block}",
                f"{block.height}×{block.width}",
                str(block.interval),
                f"{block.head_distances.mean():.2f}",
                f"{block.uniform_distance:.2f}",
                f"{block.head_distances.mean() * block.stride:.1f}",
            )
            for block in blocks
        ],
        title="mean over heads; every head's is in attention_distance.csv",
    )
    say(f"attention_maps and attention_distance, .png and .csv, are in {folder}")


@app.command()
def architecture(
    model: Annotated[str, typer.Argument(help="A run, checkpoint or timm model name of a CrossFormer.")],
    size: Size = None,
    options: Options = "{}",
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Draw the stages and blocks of a model (Fig. 1, 6) and its first embedding layer (Fig. 3)."""
    from crossformerpp.analysis import architecture_pictures as pictures
    from crossformerpp.data.photographs import open_photographs
    from crossformerpp.models import CrossFormer

    network = _open(model, options, size)
    if not isinstance(network.model, CrossFormer):
        raise ValueError(f"{model}: not a CrossFormer; this command draws no other architecture")
    folder = _claim(out, overwrite)
    photograph = next(iter(open_photographs("train")))
    pictures.architecture(network.model, network.size).savefig(folder / "architecture.png", dpi=100)
    stages: Any = network.model.stages
    pictures.embedding(stages[0].embedding, photograph).savefig(folder / "embedding.png", dpi=100)
    say(f"architecture.png and embedding.png are in {folder}")


@app.command()
def groups(
    run: Annotated[str, typer.Argument(help="A run or a checkpoint of a CrossFormer.")],
    budget: Annotated[
        str, typer.Option(help="Multiply-accumulates of the whole model, e.g. 4.2GMACs or 380M.")
    ],
    smallest: Annotated[
        int | None, typer.Option(min=1, help="Smallest group size; default: the run's.")
    ] = None,
    largest: Annotated[
        int | None,
        typer.Option(min=1, help="Largest group size, at which attention is measured; default: the run's."),
    ] = None,
    images: Images = None,
    size: Size = None,
    out: Annotated[
        Path | None, typer.Option(help="Recipe to write, which starts from the run's weights.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose a group size per block from a trained model's attention, within a budget of MACs."""
    macs = _macs(budget)
    if out is not None and out.exists() and not overwrite:
        raise ValueError(f"{out} exists; choose another --out, or pass --overwrite")
    network = _open(run, "{}", size)
    found = _choose_groups(network, smallest, largest, images, macs)
    if out is not None:
        _write_recipe(network, found.group_sizes, size, out)
    if as_json:
        show_json(asdict(found) | {"group_sizes": found.group_sizes})
        return
    show_table(
        ("block", "attention", "distance", "if even", "G before", "G", "kept", "MACs", "why no larger"),
        [
            (
                f"{choice.stage}.{choice.block}",
                choice.distance,
                f"{choice.attention_distance:.2f}",
                f"{choice.uniform_distance:.2f}",
                str(choice.before),
                str(choice.size),
                f"{choice.kept:.1%}",
                f"{choice.macs / 1e6:.4g}M",
                choice.reason,
            )
            for choice in found.blocks
        ],
        title=f"{found.macs / 1e6:,.1f}M multiply-accumulates at {network.size} pixels, "
        f"before {found.macs_before / 1e6:,.1f}M",
    )
    say(
        f"continue with: crossformer train {out}" if out else f"model.options.group_sizes={found.group_sizes}"
    )


def _choose_groups(
    network: Network, smallest: int | None, largest: int | None, images: list[Path] | None, budget: int
) -> GroupChoices:
    from crossformerpp.analysis.attention_maps import block_attentions
    from crossformerpp.analysis.group_choice import choose_groups
    from crossformerpp.layers.attention import GroupAttention
    from crossformerpp.models.crossformer import CrossFormer

    model = network.model
    if network.saved is None or not isinstance(model, CrossFormer):
        raise ValueError(
            f"{network.name}: group sizes are chosen from the attention of a trained CrossFormer; pass its run"
        )
    own = [attn.rule.group_size for attn in model.modules() if isinstance(attn, GroupAttention)]
    smallest, largest = smallest or min(own), largest or max(own)
    if smallest > largest:
        raise ValueError(
            f"group sizes from {smallest} to {largest}: the smallest must not exceed the largest"
        )
    measured = _open(network.name, f"group_sizes: {[largest] * len(model.stages)}", network.size)
    attentions = block_attentions(measured.model, _batches(measured, images))
    return choose_groups(model, attentions, network.size, smallest, largest, budget)


def _open(name: str, options: str, size: int | None) -> Network:
    from crossformerpp.recipes.load import parse_options
    from crossformerpp.tasks.network import open_network

    return open_network(name, parse_options(options), size)


def _claim(out: Path | None, overwrite: bool) -> Path:
    from crossformerpp.data.writing import claim_folder, fresh_folder

    return claim_folder(fresh_folder(Path("analysis")) if out is None else out, overwrite)


def _batches(network: Network, paths: list[Path] | None) -> Iterator[Tensor]:
    """The images one by one, with a progress bar."""
    from crossformerpp.data.photographs import open_photographs
    from crossformerpp.predict import open_images

    if paths:
        images = open_images(paths)
        pictures = (images.open_photograph(number) for number in range(len(images)))
        total = len(images)
    else:
        photographs = [*open_photographs("train"), *open_photographs("val")]
        pictures, total = (photograph for photograph in photographs), len(photographs)
    for picture in track(pictures, total, network.name):
        yield network.transform(picture).unsqueeze(0)


def _place(text: str) -> tuple[float, float]:
    try:
        y, x = map(float, text.split(","))
    except ValueError:
        y = x = -1.0
    if not (0 <= y <= 1 and 0 <= x <= 1):
        raise ValueError(f"--token {text}: give Y,X as fractions of the group's sides, such as 0.5,0.5")
    return y, x


def _macs(text: str) -> int:
    from crossformerpp.tasks.points import parse_budget

    with suppress(ValueError):
        budget = parse_budget(text)
        if budget.cost == "macs":
            return round(budget.most)
    raise ValueError(f"--budget {text}: give multiply-accumulates such as 4.2GMACs or 380M")


def _distance_rows(blocks: Sequence[BlockAttention]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        for head, distance in enumerate(block.head_distances.tolist(), start=1):
            yield {
                "stage": block.stage,
                "block": block.block,
                "head": head,
                "group_height": block.height,
                "group_width": block.width,
                "interval": block.interval,
                "distance_tokens": distance,
                "distance_pixels": distance * block.stride,
                "even_distance_tokens": block.uniform_distance,
            }


def _map_rows(
    blocks: Sequence[BlockAttention], places: Sequence[tuple[float, float]]
) -> Iterator[dict[str, Any]]:
    for block in blocks:
        for place in places:
            (y, x), values = block.token_map(*place)
            for key_y, row in enumerate(values.tolist()):
                for key_x, weight in enumerate(row):
                    yield {
                        "stage": block.stage,
                        "block": block.block,
                        "query_y": y,
                        "query_x": x,
                        "key_y": key_y,
                        "key_x": key_x,
                        "attention": weight,
                    }


def _write_csv(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    rows = list(rows)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write_recipe(network: Network, group_sizes: list[list[int]], size: int | None, path: Path) -> None:
    """The run's recipe with these group sizes and size of images, starting from its weights."""
    from crossformerpp.data.writing import replacing
    from crossformerpp.recipes.load import dump_recipe, parse_recipe
    from crossformerpp.tasks.points import options_with, resize

    assert network.saved is not None
    values = network.saved.recipe.model_dump()
    values["model"]["options"] = options_with(network.saved.recipe, {"group_sizes": group_sizes})
    values["model"] |= {"checkpoint": network.saved.path.resolve(), "elastic": None}
    if size is not None:
        resize(values, size)
    with replacing(path) as file:
        file.write(dump_recipe(parse_recipe(values, str(path))).encode())
