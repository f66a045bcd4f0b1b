"""benchmarks/ablation.py: rows that differ, and a table of what was run."""

import itertools

import timm
import torch
from benchmarks.ablation import BASE, ROWS, markdown

import crossformerpp  # noqa: F401 (registers our models with timm)


def test_every_row_is_another_model():
    images = torch.randn(1, 3, 48, 48)
    outputs = {}
    for row, (_, options) in ROWS.items():
        torch.manual_seed(0)
        model = timm.create_model("crossformerpp_small", **{**BASE, **options}).eval()
        with torch.no_grad():
            outputs[row] = model(images)
    for one, other in itertools.combinations(outputs, 2):
        assert not torch.allclose(outputs[one], outputs[other], atol=1e-6), (one, other)


def test_the_table_has_means_and_spreads_and_says_what_was_not_run():
    lines = [
        {
            "row": "no-acl",
            "seed": seed,
            "top1": top1,
            "loss": 0.5,
            "maximum": 8,
            "mean": 1,
        }
        for seed, top1 in enumerate((0.9, 0.92, 0.94))
    ]
    table = markdown(lines).splitlines()
    assert len(table) == 2 + len(ROWS)
    (row,) = [line for line in table if line.startswith("| no ACL |")]
    assert row.startswith("| no ACL | 3 | 92.00 ± 2.00 | 0.500 ± 0.000 | 8.00 ± 0.00 |")
    assert sum("not run" in line for line in table) == len(ROWS) - 1
