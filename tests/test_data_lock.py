"""One process per run folder: a lock that a kill leaves harmless, without help of the file system."""

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from crossformerpp import engine
from crossformerpp.data import lock
from crossformerpp.data.lock import NAME, RunInUseError, RunLock
from tiny import tiny_recipe


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 0.4)


def hold(folder: Path, taken: Any) -> None:
    with RunLock(folder):
        taken.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process that holds the folder."""
    context = multiprocessing.get_context("fork")
    taken = context.Event()
    process = context.Process(target=hold, args=(tmp_path, taken))
    process.start()
    assert taken.wait(30)
    yield process
    process.kill()
    process.join()


def test_the_lock_goes_with_its_block(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [NAME]
    assert not list((tmp_path / "run").iterdir())


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path: Path, other: Any) -> None:
    with (
        pytest.raises(RunInUseError, match=rf"process {other.pid} on .* is training in this folder"),
        RunLock(tmp_path),
    ):
        pass


def test_a_killed_owner_is_no_hindrance(tmp_path: Path, other: Any) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert (tmp_path / NAME).exists()
    started = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - started < lock.PATIENCE, "nobody waits for a process of this machine"


def elsewhere(path: Path, **changes: Any) -> None:
    """Make the lock one of another machine."""
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "host": "elsewhere", "boot": "x", **changes}))


def test_an_owner_on_another_machine_lives_while_its_count_rises(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "t", "beats": "0"}))
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(0.1):
            count += 1
            elsewhere(path, beats=str(count))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunInUseError, match="process 1 on elsewhere"), RunLock(tmp_path):
            pass
    finally:
        ended.set()
        thread.join()
    with RunLock(tmp_path):  # its count stands still now
        pass


def test_the_count_rises_while_a_folder_is_held(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        before = (tmp_path / NAME).read_text()
        time.sleep(0.3)
        after = (tmp_path / NAME).read_text()
    assert before != after
    assert len(before) == len(after)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "\x00" * 40])
def test_a_damaged_lock_counts_as_left_behind(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with RunLock(tmp_path):
        pass
    assert not (tmp_path / NAME).exists()


def test_a_number_used_again_by_the_system_is_another_process(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        text = (tmp_path / NAME).read_text()
    about = json.loads(text)
    (tmp_path / NAME).write_text(json.dumps({**about, "pid": os.getppid(), "started": "1", "token": "old"}))
    with RunLock(tmp_path):
        pass


def test_who_lost_its_folder_ends_at_the_next_save(tmp_path: Path) -> None:
    with RunLock(tmp_path) as mine:
        elsewhere(tmp_path / NAME, token="another")
        with pytest.raises(RunInUseError, match="another process took this run over"):
            mine.check()
    assert (tmp_path / NAME).exists(), "the lock is the other's"


def test_a_run_in_progress_is_neither_resumed_nor_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    engine.train(tiny_recipe("trainer.steps=2"), run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with RunLock(run):
        with pytest.raises(RunInUseError):
            _in_another_process(engine.resume, run)
        with pytest.raises(RunInUseError):
            _in_another_process(engine.train, tiny_recipe(), run, overwrite=True)
        del before[run / "run.json"], before[run / "recipe.yaml"]
        assert {path: path.stat().st_mtime_ns for path in before} == before


def _in_another_process(function: Any, *arguments: Any, **options: Any) -> None:
    """Call, in a fork, and raise here what it raises."""
    context = multiprocessing.get_context("fork")
    found = context.Queue()

    def call() -> None:
        try:
            function(*arguments, **options)
            found.put(None)
        except Exception as error:
            found.put(error)

    process = context.Process(target=call)
    process.start()
    error = found.get(timeout=120)
    process.join()
    if error is not None:
        raise error
