"""Figures 1, 3 and 6: what is drawn is read from the modules."""

import pytest
import timm
import torch
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner

from crossformerpp.analysis.architecture_pictures import architecture, block_kinds, convolutions, embedding
from crossformerpp.cli import app, main


def build(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def words(figure):
    """All text of a picture."""
    tables = [table for axes in figure.axes for table in axes.tables]
    cells = [cell.get_text() for table in tables for cell in table.get_celld().values()]
    return " ".join(text.get_text() for text in [*figure.findobj(Text), *cells])


def test_the_table_of_fig_3_is_the_papers():
    for name, dim in (("crossformer_small", 96), ("crossformer_large", 128)):
        cel = build(name).stages[0].embedding
        assert convolutions(cel) == [(4, 4, dim // 2), (8, 4, dim // 4), (16, 4, dim // 8), (32, 4, dim // 8)]
        assert f"{dim // 4} = 0.25 D" in words(embedding(cel, Image.new("RGB", (64, 64))))


def test_fig_1_has_the_stages_of_table_i():
    text = words(architecture(build("crossformer_base")))
    for number, (side, dim) in enumerate(((56, 96), (28, 192), (14, 384), (7, 768)), start=1):
        assert f"stage {number}: {side}×{side}×{dim}" in text
    assert "18 blocks" in text
    assert "32×32" in text
    assert "DPB" in text
    assert "ACL" not in text


def test_fig_6_has_an_acl_after_every_third_block_but_the_last():
    model = build("crossformerpp_small")
    cooled = [
        number for number, (_, is_cooled) in enumerate(block_kinds(model.stages[2]), start=1) if is_cooled
    ]
    assert cooled == [3, 6, 9, 12, 15]
    assert [kind for kind, _ in block_kinds(model.stages[2])][:4] == ["SDA", "LDA", "SDA", "LDA"]
    text = words(architecture(model))
    assert "ACL, without residual" in text
    assert "depth-wise conv 3×3" in text.replace("\n", " ")


def test_other_sizes_options_and_position_representations():
    text = words(architecture(build("crossformer_tiny", position="none", num_classes=0), size=100))
    assert "stage 4: 4×4×512" in text
    assert "DPB" not in text
    assert "classes" not in text


def test_command_draws_both(tmp_path, capsys):
    arguments = ["analyze", "architecture", "crossformerpp_small", "--out", str(tmp_path / "a")]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    for name in ("architecture.png", "embedding.png"):
        assert Image.open(tmp_path / "a" / name).width > 400
    with pytest.raises(SystemExit) as exit_:
        main(["analyze", "architecture", "resnet18", "--out", str(tmp_path / "b")])
    assert exit_.value.code == 2
    assert "resnet18: not a CrossFormer" in capsys.readouterr().err
