"""`python -m benchmarks.end_to_end` in small: every command runs and is measured beside the model's own speed."""

from argparse import Namespace
from pathlib import Path

import pytest
from benchmarks import end_to_end

TINY = ("embed_dim: 16", "depths: [1,1,1,1]", "num_heads: [1,1,1,1]")


@pytest.mark.slow
def test_every_command_is_measured(tmp_path: Path) -> None:
    settings = [
        f"model.options={{{', '.join(TINY)}}}",
        "trainer.batch_size=4",
        "data.size=64",
        "data.eval_resize=64",
    ]
    arguments = Namespace(
        task="classification",
        images=8,
        rounds=1,
        steps=5,
        seconds=0.05,
        workers=1,
        what=["predict", "eval", "train"],
    )
    arguments.set = [*settings, "trainer.workers=0", "trainer.threads=1"]
    found = list(end_to_end.measure(arguments, tmp_path))
    assert {what for what, own, _ in found if own} == set(end_to_end.BARS)
    assert all(speed > 0 for _, _, speed in found)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(list((tmp_path / "data" / "val").rglob("*.jpg"))) == 8
