"""The paper's tables: every figure is the paper's, our counts meet it, and the command prints and keeps them."""

import csv
import json
import re
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import CliRunner

from crossformerpp import VARIANTS
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.paper_count import count_as_the_paper
from crossformerpp.analysis.table_files import as_csv, as_markdown, draw, table_cells
from crossformerpp.analysis.tables import TABLES, TableRow, classification_rows, paper_rows, read_tables
from crossformerpp.cli import app, main
from crossformerpp.layers import linear_group_sizes
from crossformerpp.layers.embedding import allocate_dims
from crossformerpp.recipes.load import recipe_names
from crossformerpp.tasks.tables import kept_rows, table_rows

HERE = Path(__file__).parent
DEFAULT_KERNELS = [[4, 8, 16, 32], [2, 4], [2, 4], [2, 4]]
PARAMS_TOLERANCE = {True: 0.06e6, False: 0.7e6}  # of ours; of others, which their own papers round
PAPER_COUNT_TOLERANCE = 0.25e9  # of Tables II to VII; most are within 0.2


@cache
def counted(table):
    return list(table_rows(table))


def printed_lines():
    """The rows of the paper's text by table: (words, figures as printed)."""
    lines, table = {}, ""
    for line in (HERE / "golden" / "paper_tables.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("TABLE "):
            table = line.removeprefix("TABLE ")
        elif re.search(r"\d[MG] |\d%|imgs", line):
            plain = re.sub(r"\(\+[\d.]+%?\)|imgs/sec|/", " ", line)  # gains over CrossFormer, units
            lines.setdefault(table, []).append(plain.split())
    return lines


def figure(word):
    return None if word == "-" else float(word.rstrip("MG%"))


@pytest.mark.parametrize("table", TABLES)
def test_every_figure_of_every_row_is_what_the_paper_prints(table):
    """In the text's order; names and groups in the text are as damaged as extraction from a PDF leaves them."""
    page = read_tables()[table]
    parts = page.get("parts", [page])
    rows = [(row, part["columns"]) for part in parts for row in part["rows"]]
    lines = printed_lines()[table]
    assert len(lines) == len(rows)
    for words, (row, columns) in zip(lines, rows, strict=True):
        assert [figure(word) for word in words[-len(columns) :]] == row["printed"], (words, row["name"])
        name = " ".join(words[: -len(columns)])
        if table == "VI":
            assert name == " ".join(damaged(kernels) for kernels in row["name"].split(" | "))
        else:
            assert re.sub(r" \(.*", "", row["name"]).lower() in name.lower()


def damaged(kernels):
    return kernels + kernels.replace(",", "") + kernels


def test_options_of_the_ablations_are_what_their_rows_print():
    for row in paper_rows("VI"):
        kernels = [[int(size) for size in text.split(",")] for text in row.name.split(" | ")]
        assert row.options.get("kernel_sizes", DEFAULT_KERNELS) == kernels
    for row in paper_rows("VII"):
        channels = [row.figures[f"{side}×{side} channels"] for side in (4, 8, 16, 32)]
        assert allocate_dims(96, 4, row.options.get("allocation", "halving")) == channels
    for row, words in zip(paper_rows("IX"), printed_lines()["IX"], strict=True):
        if row.is_ours and "→" not in row.name:
            sizes = row.options.get("group_sizes") or VARIANTS[row.model]["group_sizes"]
            assert list(sizes) == [int(size) for size in re.findall(r"\\times (\d+)", " ".join(words))]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_agrees_with_the_paper_or_says_why_not(table):
    """Parameters and multiply-accumulates of every row that is built; a row with a note is explained by it, and only
    rows that need one have one."""
    unexplained = []
    for row in counted(table):
        assert (row.params is None) == (row.model is None)
        if row.params is None:
            continue
        near = []
        if row.paper_params is not None:
            near.append(row.params == pytest.approx(row.paper_params, abs=PARAMS_TOLERANCE[row.is_ours]))
        if row.paper_macs is not None and row.paper_count is not None:
            near.append(row.paper_count == pytest.approx(row.paper_macs, abs=PAPER_COUNT_TOLERANCE))
        elif row.paper_macs is not None:
            near.append(row.macs == pytest.approx(row.paper_macs, rel=0.017))
        if not all(near) and not row.note:
            unexplained.append((row.name, row.head, row.params, row.paper_params, row.macs, row.paper_macs))
        assert not (near and all(near) and row.note), f"{row.name} needs no note"
    assert not unexplained


def test_every_model_named_is_there():
    rows = [row for table in TABLES for row in paper_rows(table) if row.model is not None]
    assert all(timm.is_model(row.model) for row in rows)
    assert {row.recipe for row in rows if row.recipe} <= set(recipe_names())
    assert all(row.recipe for row in rows if row.is_ours and row.table in ("II", "III", "IV", "V"))


@pytest.mark.parametrize("name", ["crossformer_small", "crossformerpp_huge"])
def test_where_nothing_is_padded_the_papers_count_is_ours(name):
    """112 divides into all groups; the two counts are independent, one of layers that run, one of formulas."""
    options = {"group_sizes": [7, 7, 7, 7], "intervals": [4, 2, 1, 1], "num_classes": 0}
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    ours = count_complexity(model, (3, 112, 112)).macs
    assert count_as_the_paper(name, options, 112, 112) == ours


@pytest.mark.parametrize(
    ("name", "height", "width"), [("crossformerpp_small", 224, 224), ("crossformer_tiny", 160, 240)]
)
@pytest.mark.parametrize(
    "others", [{"lda": "regional"}, {"lda": "spanning"}, {"strides": (2, 2, 2, 2), "in_chans": 5}]
)
def test_without_padding_the_formula_counts_what_a_forward_pass_does(name, height, width, others):
    options = {**others, "num_classes": 0}
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    ours = count_complexity(model, (model.in_chans, height, width)).macs
    assert count_as_the_paper(name, options, height, width, padded=False) == ours
    assert count_as_the_paper(name, options, height, width) >= ours


@pytest.mark.parametrize("kind", ["regional", "spanning"])
def test_padding_counts(kind):
    """By hand: stage 1 of one SDA and one LDA block on a map of 9×10, G = 4, I = 3."""
    options = {
        "depths": (2, 0, 0, 0),
        "embed_dim": 32,
        "group_sizes": [4] * 4,
        "intervals": [3] * 4,
        "lda": kind,
    }
    cel = sum(k * k * 3 * d for k, d in ((4, 16), (8, 8), (16, 4), (32, 4))) * 90
    mlp = 2 * 8 * 90 * 32**2
    bias = (2 * 2 + 2 * 2**2 + 2 * 1) * 49
    short = 4 * 144 * 32**2 + 2 * 144 * 16 * 32 + bias  # padded to 12×12
    padded, N, offsets = (
        (144, 16, 49) if kind == "regional" else (108, 12, 35)
    )  # to 12×12; to 9×12, groups of 3×4
    long = 4 * padded * 32**2 + 2 * padded * N * 32 + bias // 49 * offsets
    later = count_as_the_paper("crossformer_tiny", {**options, "depths": (0, 0, 0, 0)}, 36, 40) - cel
    assert count_as_the_paper("crossformer_tiny", options, 36, 40) == cel + mlp + short + long + later


def test_the_linear_row_grows_from_4_to_14():
    (row,) = [row for row in paper_rows("IX") if "4→14" in row.name]
    stages, expected = row.options["group_sizes"], linear_group_sizes((2, 2, 18, 2), 4, 14, final_stage=7)
    assert [tuple(s) if isinstance(s, list) else (s, s) for s in stages] == list(expected)


ROWS = [
    TableRow(
        "II", "A|B", "x", params=1_010_000, macs=2 * 10**9, paper_params=1e6, figures={"accuracy": 80.0},
        throughput={1: 12.34}, paper_throughput={1: 50}, note="a note",
    ),
    TableRow("II", "C", paper_params=2e6, paper_macs=3e9, figures={"accuracy": 81.0}),
]  # fmt: skip


def test_figures_of_ours_and_the_paper_stand_side_by_side():
    header, cells = table_cells(ROWS)
    first, second = (dict(zip(header, line, strict=True)) for line in cells)
    assert first["params, M"] == "1.01"
    assert first["Δ params"] == "+1.0%"
    assert (first["images/s at 1"], first["paper's images/s at 1"]) == ("12.3", "50")
    assert (second["params, M"], second["Δ params"], second["paper's GMACs"]) == ("", "", "3.0")
    assert "Δ GMACs" not in header  # nothing to fill it with
    page = as_markdown("title", ROWS)
    assert page.startswith("## Table II: title\n\n| model |")
    assert "| A/B | 1.01 |" in page
    assert "A/B: a note." in page


def test_sheet_has_exact_numbers():
    first, second = csv.DictReader(as_csv(ROWS).splitlines())
    assert (first["params"], first["images/s at 1"], first["size"]) == ("1010000", "12.34", "224x224")
    assert (second["params"], second["paper accuracy"]) == ("", "81.0")


def test_diagram_has_a_panel_more_for_every_batch_size_measured(tmp_path):
    draw("t", ROWS, tmp_path / "a.png")
    draw("t", ROWS[1:], tmp_path / "b.png")
    widths = [int.from_bytes((tmp_path / f).read_bytes()[16:20], "big") for f in ("a.png", "b.png")]
    assert widths[0] == 2 * widths[1]


def test_command_measures_and_writes_and_keeps_what_is_there(tmp_path, capsys):
    arguments = [
        "tables",
        "vii",
        "--out",
        str(tmp_path / "t"),
        "--measure",
        "--batch",
        "1",
        "--seconds",
        "0.01",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    equally, ours = json.loads(result.stdout)
    assert ours["name"] == "CEL-Ours"
    assert all(row["throughput"]["1"] > 0 for row in (equally, ours))
    assert {path.name for path in (tmp_path / "t").iterdir()} == {"tables.md", "tables.csv", "table_VII.png"}
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "--overwrite" in capsys.readouterr().err


def test_unknown_table_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["tables", "XII"])
    assert exit_.value.code == 2
    assert "no table 'XII': choose among II, III" in capsys.readouterr().err


def test_rows_are_counted_one_by_one():
    rows = classification_rows("II")
    first = next(rows)
    assert (first.name, first.params, first.paper_params) == ("PVT-S", None, 24.5e6)


def test_the_page_on_reproduction_has_a_line_per_row():
    """Recipe, groups and the paper's figures of every row that is ours, in the tables' order; ours: not run."""
    text = (HERE.parent / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for table in TABLES:
        section = text.partition(f"\n## Table {table}:")[2].partition("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("| ") and "`" in line]
        rows = [row for row in paper_rows(table) if row.is_ours]
        assert len(lines) == len(rows)
        for line, row in zip(lines, rows, strict=True):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            name, recipe, groups, figures, here = cells
            assert name.startswith(row.name.replace("|", "/"))
            assert recipe.startswith(f"`{row.recipe}`")
            switches = set(row.options) - {"group_sizes", "intervals", "lda"}
            assert all(f"{switch}: " in recipe for switch in switches)
            sizes = row.options.get("group_sizes") or VARIANTS[row.model]["group_sizes"]
            assert groups.startswith(", ".join(map(str, sizes)) if "→" not in row.name else "4, 5, 6→14")
            assert groups.endswith(
                (row.options["lda"],) if "lda" in row.options else ("spanning", "regional")
            )
            headline = next(label for label in ("accuracy", "box AP", "IoU") if label in row.figures)
            assert f"{headline} {row.figures[headline]:.1f}" in figures
            assert here == "not run"


def test_counts_are_kept_until_code_changes(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counted = list(kept_rows("VII"))
    assert counted == list(table_rows("VII"))
    assert any(row.macs for row in counted)

    def fail(table):
        raise AssertionError("counted again")
        yield

    with monkeypatch.context() as kept:
        kept.setattr("crossformerpp.tasks.tables.classification_rows", fail)
        assert list(kept_rows("VII")) == counted
        kept.setattr("crossformerpp.tasks.tables.timm.__version__", "another")
        with pytest.raises(AssertionError, match="counted again"):
            list(kept_rows("VII"))
    file = tmp_path / "crossformerpp" / "counts.json"
    for damage in ("{", "[]", '{"made_by": 3}'):
        file.write_text(damage)
        assert list(kept_rows("VII")) == counted
    with pytest.raises(ValueError, match="no table 'XX'"):
        list(kept_rows("XX"))
