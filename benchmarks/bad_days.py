"""Kills, full disks and read-only folders: nothing is half there, and every run goes on or says what to do.

    python -m benchmarks.bad_days kill [--moments 100]      SIGKILL and SIGTERM at random moments
    python -m benchmarks.bad_days predict [--moments 10]    SIGKILL at random moments of one prediction of 500 images
    python -m benchmarks.bad_days disk                      a disk of 3 MB, ever fuller (root: mounts a tmpfs)
    python -m benchmarks.bad_days readonly                  the same, read-only

Commands run in forks of this process, which has imported everything already, so that most of their time is theirs.
Every file that a command leaves visible is opened afterwards and must be whole.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import onnx
import safetensors.torch
import timm
import torch
from PIL import Image
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop

import crossformerpp.models
import crossformerpp.share  # noqa: F401 (imported once, before the forks)
from benchmarks.photographs import write_photographs
from crossformerpp import cli, engine, export, predict  # noqa: F401
from crossformerpp.checkpoints import to_released

TINY = (
    "model.options={embed_dim: 16, depths: [1,1,1,1], num_heads: [1,1,2,2], group_sizes: [4,4,2,1]}",
    "trainer.epochs=null",
    "trainer.steps=30",
    "trainer.eval_every=10",
    "trainer.checkpoint_every=2",
    "trainer.log_every=4",
    "trainer.workers=0",
    "trainer.threads=1",
    "schedule.warmup_epochs=0",
)


_is_evaluating = RawValue("b", 0)  # of the command in the fork; without a lock, which a kill would leave held


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit status (negative: the signal), what it said, and what the signal met."""

    status: int
    said: str
    was_signalled: bool = False
    was_evaluating: bool = False

    @property
    def is_clean(self) -> bool:
        """Done, or ended by a signal, or one line of an error."""
        return "Traceback" not in self.said and (self.status in (0, 1, 2, 130, 143) or self.status < 0)


def run(*arguments: object, log: Path, after: float | None = None, number: int = signal.SIGKILL) -> Ended:
    """A command in a fork, with a signal after so many seconds."""
    process = multiprocessing.get_context("fork").Process(target=_command, args=([*map(str, arguments)], log))
    _is_evaluating.value = 0
    log.unlink(missing_ok=True)
    process.start()
    process.join(after)
    was_evaluating, was_signalled = bool(_is_evaluating.value), process.is_alive()
    if was_signalled and process.pid is not None:
        os.kill(process.pid, number)
        process.join(60)
        assert not process.is_alive(), f"{arguments} goes on after signal {number}"
    assert process.exitcode is not None
    said = log.read_text(errors="replace") if log.exists() else ""
    return Ended(process.exitcode, said, was_signalled, was_evaluating)


def _watched(evaluate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(loop: Any) -> Any:
        _is_evaluating.value = 1
        try:
            return evaluate(loop)
        finally:
            _is_evaluating.value = 0

    return run


def _command(arguments: list[str], log: Path) -> None:
    _EvaluationLoop.run = _watched(_EvaluationLoop.run)  # type: ignore[method-assign]
    file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main(arguments)


# What must hold of files


def check_whole(folder: Path) -> int:
    """Open every visible file below a folder, and count them.

    Raises:
        Exception: One is not whole; of the type that its reader raises.
    """
    count = 0
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if not path.is_file() or any(part.startswith(".") for part in inside) or "tensorboard" in inside:
            continue
        count += 1
        if path.suffix in (".png", ".jpg"):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":  # lines are added: the last one may be cut off
            for line in path.read_text().splitlines(keepends=True):
                assert not line.endswith("\n") or json.loads(line)
        elif path.suffix == ".csv" and not _grows(path):
            with path.open(newline="") as file:
                rows = list(csv.reader(file, strict=True))
            assert len({len(row) for row in rows}) == 1, f"{path} is ragged"
        elif path.suffix in (".ckpt", ".pth"):
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors":
            safetensors.torch.load_file(path)
        elif path.suffix == ".onnx":
            onnx.checker.check_model(onnx.load(path))
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>"), f"{path} is cut off"
        elif path.suffix == ".yaml":
            assert path.read_text().strip(), f"{path} is empty"
    return count


def _grows(table: Path) -> bool:
    """Whether rows are added to a table while its command runs, so that a kill may cut the last one off."""
    return table.name == "metrics.csv" or table.with_suffix(".jsonl").exists()


def settings() -> list[str]:
    return [word for setting in TINY for word in ("--set", setting)]


def equal_runs(one: Path, other: Path) -> bool:
    """Whether weights, optimiser and logged losses of two runs are the same bit for bit."""
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other)]
    losses = []
    for folder in (one, other):
        with (folder / "metrics.csv").open(newline="") as file:
            losses.append(
                [(row["step"], row["train_loss"]) for row in csv.DictReader(file) if row["train_loss"]]
            )
    return losses[0] == losses[1] and all(
        _equal(states[0][key], states[1][key]) for key in ("state_dict", "optimizer_states", "global_step")
    )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


# Kills


def others(whole: Path, released: Path, out: Path) -> dict[str, list[object]]:
    """Commands beside `train`, each writing into `out`."""
    return {
        "eval": ["eval", whole, "--out", out],
        "predict": ["predict", whole, whole / "samples", "--out", out],
        "export": ["export", whole, "--out", out / "model.onnx"],
        "share": ["share", whole, "--out", out / "shared"],
        "convert": ["convert", released, out / "a.safetensors", "--model", "crossformer_tiny"],
        "demo": ["demo", whole, "--out", out / "page.html"],
    }


def kill(room: Path, moments: int, seed: int = 0) -> Counter[str]:
    """Signals at random moments of training, then of the other commands in turn; the outcomes by kind.

    Raises:
        AssertionError: A run did not go on bit for bit, or a file is half there.
    """
    generator, outcomes = random.Random(seed), Counter[str]()
    whole, log = room / "whole", room / "log"
    started = time.monotonic()
    ended = run("train", "digits", *settings(), "--out", whole, log=log)
    assert ended.status == 0, ended.said
    length = time.monotonic() - started
    released = released_file(room)
    lengths: dict[str, float] = {}
    for name in others(whole, released, room):
        started = time.monotonic()
        (room / "out").mkdir()
        ended = run(*others(whole, released, room / "out")[name], log=log)
        assert ended.status == 0, f"{name}: {ended.said}"
        lengths[name] = time.monotonic() - started
        shutil.rmtree(room / "out")
    for moment in range(2 * moments):
        number = signal.SIGKILL if moment % 2 else signal.SIGTERM
        outcome = None
        while outcome is None:  # it had ended before the signal
            if moment < moments:
                outcome = _kill_training(room / "run", whole, generator.uniform(0, length), number, log)
            else:
                name = list(lengths)[moment // 2 % len(lengths)]
                after = generator.uniform(0, lengths[name])
                command = others(whole, released, room / "out")[name]
                outcome = _kill_other(name, command, room / "out", after, number, log)
        outcomes[f"{signal.Signals(number).name}: {outcome}"] += 1
        print(f"{moment + 1} of {2 * moments}: {outcome}", file=sys.stderr)
    return outcomes


def kill_predictions(room: Path, moments: int, images: int = 500, seed: int = 0) -> Counter[str]:
    """One prediction of many photographs, killed again and again, each time later, and resumed.

    Raises:
        AssertionError: An image is missing or there twice, or its answer is not that of an undisturbed prediction.
    """
    generator, log = random.Random(seed), room / "log"
    write_photographs(room / "photographs", images)
    ended = run("train", "digits", *settings(), "--out", room / "run", log=log)
    assert ended.status == 0, ended.said
    command = ["predict", room / "run", room / "photographs", "--batch-size", "8", "--workers", "1", "--out"]
    assert run(*command, room / "whole", log=log).status == 0, log.read_text()
    outcomes, out = Counter[str](), room / "out"
    lines = out / "predictions.jsonl"
    for moment in sorted(generator.sample(range(images), moments)):
        process = multiprocessing.get_context("fork").Process(
            target=_command, args=([*map(str, command), str(out), "--resume"], log)
        )
        process.start()
        while process.is_alive() and (not lines.exists() or lines.read_bytes().count(b"\n") <= moment):
            time.sleep(generator.uniform(0, 0.01))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()
        outcomes["ended before the kill" if process.exitcode == 0 else "killed"] += 1
        check_whole(out)
    ended = run(*command, out, "--resume", log=log)
    assert ended.status == 0, ended.said
    whole, found = (
        [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for folder in (room / "whole", out)
    )
    assert [one["image"] for one in found] == [one["image"] for one in whole]
    assert len(found) == images
    for one, other in zip(found, whole, strict=True):
        pairs = zip(one["top"], other["top"], strict=True)
        assert all(abs(a["probability"] - b["probability"]) < 1e-5 for a, b in pairs)
        assert all(Path(picture).is_file() for picture in one["pictures"])
    assert len(list(out.glob("*.jpg"))) == images
    return outcomes


def _kill_training(out: Path, whole: Path, after: float, number: int, log: Path) -> str | None:
    ended = run("train", "digits", *settings(), "--out", out, log=log, after=after, number=number)
    assert ended.is_clean, ended.said
    if out.exists():
        check_whole(out)
    outcome = f"train{', evaluating' if ended.was_evaluating else ''}: "
    if ended.status == 0:
        outcome += "signal too late to stop it"
    else:
        again = run("train", "--resume", out, log=log)
        if again.status != 0:
            is_told = "begin again with --overwrite" in again.said or "not a run" in again.said
            assert again.status == 2, again.said
            assert is_told, again.said
            again = run("train", "digits", *settings(), "--out", out, "--overwrite", log=log)
            outcome += "before the first checkpoint, begun again as it says"
        else:
            outcome += "resumed"
        assert again.status == 0, again.said
    assert equal_runs(whole, out), f"another run after signal {number} at {after:.2f} s"
    left = list(out.rglob(".*.unfinished"))
    assert not left, left
    shutil.rmtree(out)
    return outcome if ended.was_signalled else None


def _kill_other(
    name: str, command: list[object], out: Path, after: float, number: int, log: Path
) -> str | None:
    out.mkdir()
    ended = run(*command, log=log, after=after, number=number)
    assert ended.is_clean, f"{name}: {ended.said}"
    check_whole(out)
    if number == signal.SIGTERM:
        left = list(out.rglob(".*.unfinished"))
        assert not left, f"{name} left {left}"
    ended_again = run(*command, "--resume" if name == "predict" else "--overwrite", log=log)
    assert ended_again.status == 0, f"{name} again: {ended_again.said}"
    check_whole(out)
    shutil.rmtree(out)
    return f"{name}: whole or not there, and again" if ended.was_signalled else None


def released_file(room: Path) -> Path:
    """A file as the authors release them, with random weights."""
    torch.manual_seed(0)
    model = timm.create_model("crossformer_tiny")
    torch.save({"model": to_released(model.state_dict())}, room / "released.pth")
    return room / "released.pth"


# Disks


@contextmanager
def small_disk(folder: Path, size: str = "3m") -> Iterator[Path]:
    """A file system of this size, for the length of the block.

    Raises:
        PermissionError: It may not be mounted here.
    """
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        folder.rmdir()
        raise PermissionError(f"mount: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def disk(room: Path, free: Sequence[int] = (0, 2, 8, 32, 100, 500, 1000, 1500, 2000, 3000)) -> Counter[str]:
    """Every command that writes, with so many KB left on the disk.

    Raises:
        AssertionError: A traceback, or a file that is half there.
    """
    outcomes, log = Counter[str](), room / "log"
    whole = room / "whole"
    narrow = [
        *settings(),
        "--set",
        "model.options.embed_dim=8",
    ]  # whose checkpoints fit on the disk, once or twice
    ended = run("train", "digits", *narrow, "--out", whole, log=log)
    assert ended.status == 0, ended.said
    released = released_file(room)
    for left in free:
        for name in ("train", *others(whole, released, room)):
            with small_disk(room / "small") as small:
                ballast = 3 * 1024 - left
                (small / "ballast").write_bytes(bytes(1024 * max(0, ballast - 8)))
                out = small / "out"
                with suppress(OSError):  # not even room for a folder
                    out.mkdir()
                if not out.is_dir():
                    continue
                command = (
                    ["train", "digits", *narrow, "--out", out / "run"]
                    if name == "train"
                    else others(whole, released, out)[name]
                )
                ended = run(*command, log=log)
                assert ended.is_clean, f"{name} with {left} KB: {ended.said}"
                if ended.status:
                    assert "No space left" in ended.said, f"{name} with {left} KB: {ended.said}"
                check_whole(out)
                assert not list(out.rglob(".*.unfinished")), (
                    f"{name} with {left} KB left something half written"
                )
                outcomes[f"{name}: {'done' if ended.status == 0 else 'refused in one line'}"] += 1
                if name == "train" and ended.status and (out / "run" / "checkpoints" / "last.ckpt").exists():
                    shutil.copytree(out / "run", room / "saved")
                    again = run("train", "--resume", room / "saved", log=log)
                    assert again.status == 0, again.said
                    assert equal_runs(whole, room / "saved"), "another run after a full disk"
                    outcomes["train: resumed on a larger disk, bit for bit"] += 1
                    shutil.rmtree(room / "saved")
    return outcomes


def readonly(room: Path) -> Counter[str]:
    """Every command that writes, into a folder that cannot be written.

    Raises:
        AssertionError: A traceback, or success.
    """
    outcomes, log = Counter[str](), room / "log"
    whole = room / "whole"
    ended = run("train", "digits", *settings(), "--out", whole, log=log)
    assert ended.status == 0, ended.said
    released = released_file(room)
    with small_disk(room / "small", "64m") as small:
        shutil.copytree(whole, small / "run")
        (small / "out").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        commands = {"train": ["train", "digits", *settings(), "--out", small / "new"]}
        commands |= {"resume": ["train", "--resume", small / "run"]}
        commands |= others(whole, released, small / "out")
        for name, command in commands.items():
            ended = run(*command, log=log)
            assert ended.is_clean, f"{name}: {ended.said}"
            assert ended.status == 2, f"{name}: {ended.status} {ended.said}"
            outcomes[f"{name}: {ended.said.strip().splitlines()[-1].split(': ')[-1]}"] += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=("kill", "predict", "disk", "readonly"))
    parser.add_argument("--moments", type=int, help="default: 100, of predict 10")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        seed = arguments.seed
        kinds = {
            "kill": lambda: kill(room, arguments.moments or 100, seed),
            "predict": lambda: kill_predictions(room, arguments.moments or 10, seed=seed),
            "disk": lambda: disk(room),
        }
        outcomes = kinds.get(arguments.kind, lambda: readonly(room))()
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:5d}  {outcome}")
    print(f"{sum(outcomes.values())} of {sum(outcomes.values())} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
