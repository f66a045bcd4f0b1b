"""`crossformer bench`: what it measures fits together; bad arguments are one line."""

import csv
import json
from functools import partial

import pytest
from typer.testing import CliRunner

from crossformerpp.analysis import throughput
from crossformerpp.cli import app, main

FAST = ["--batch", "2", "--size", "32x64", "--seconds", "0.01", "--threads", "1"]


def test_rows_fit_together_and_are_written(tmp_path):
    options = "{embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 1, 2, 4], num_classes: 10}"
    models = ["crossformerpp_small", "crossformer_tiny"]
    result = CliRunner().invoke(
        app,
        ["bench", *models, *FAST, "--options", options, "--out", str(tmp_path), "--json"],
        catch_exceptions=False,
    )
    ours, other = json.loads(result.stdout)
    assert [ours["model"], other["model"]] == models
    assert other["speed_ratio"] == 1.0
    assert ours["gmacs"] == pytest.approx(other["gmacs"], rel=0.1)
    for row in (ours, other):
        assert row["images_per_s"] == pytest.approx(2e3 / row["median_ms"])
        assert row["gflops_per_s"] == pytest.approx(2 * row["gmacs"] * row["images_per_s"])
        assert 0 < row["peak_share"] < 1
        assert row["peak_extra_bytes"] > 2 * 3 * 32 * 64
    with (tmp_path / "bench.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == models
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_calls_in_turn_are_prepared_outside_the_time(monkeypatch):
    events, clock = [], iter(range(1000))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: events.append("clock") or next(clock))
    calls = {name: partial(events.append, name) for name in "ab"}
    timings = throughput.time_in_turn(
        calls, min_runs=1, max_runs=1, warmup=2, prepare={"a": partial(events.append, "prepare a")}
    )
    assert events[:5] == ["prepare a", "a", "a", "b", "b"]
    assert events[6:] == ["prepare a", "clock", "a", "clock", "clock", "b", "clock"]
    assert {name: timing.runs for name, timing in timings.items()} == {"a": 1, "b": 1}


def test_the_papers_protocol_waits_twice_around_30_runs_in_a_row(monkeypatch):
    events = []
    monkeypatch.setattr(throughput, "_wait", lambda device: events.append(device))
    timing = throughput.time_calls({"a": lambda: events.append("run")}, "paper", device="cuda")["a"]
    assert events == ["run"] * 50 + ["cuda"] + ["run"] * 30 + ["cuda"]
    assert timing.runs == 30
    assert 0 < timing.low == timing.median == timing.high


def test_the_papers_protocol_on_the_command_line():
    options = "{embed_dim: 16, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1], num_classes: 10}"
    arguments = [
        "bench",
        "crossformer_tiny",
        "--batch",
        "1",
        "--size",
        "32",
        "--options",
        options,
        "--protocol",
        "paper",
    ]
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    (row,) = json.loads(result.stdout)
    assert (row["protocol"], row["runs"]) == ("paper", 30)
    assert row["images_per_s"] == pytest.approx(1e3 / row["median_ms"])
    assert "mean ms" in CliRunner().invoke(app, arguments, catch_exceptions=False).stdout


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["no_such_model", *FAST], "no model 'no_such_model'"),
        (["crossformer_tiny", "--size", "a"], "size 'a'"),
        (["crossformer_tiny", *FAST, "--options", "3"], "--options '3': expected a mapping"),
        (["crossformer_tiny", *FAST, "--options", "group_size: 7"], "options of crossformer_tiny: "),
        (["resnet18", *FAST, "--options", "group_size: 7"], "none is among resnet18"),
    ],
)
def test_mistakes_are_one_line(arguments, match, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    assert exit_.value.code == 2
    assert match in capsys.readouterr().err
