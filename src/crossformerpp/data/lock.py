"""One process at a time per folder of a run or of predictions.

The lock is a file, made with O_EXCL, which network file systems have, where they lack flock. It says who made it. A
process that was killed leaves it behind, harmlessly: on the same machine the next one sees that its owner is gone,
and on another one that the owner's count, which a living one raises every few seconds, stands still.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

NAME = ".running"
BEAT = 4.0  # seconds between two signs of life
PATIENCE = 15.0  # seconds without one, after which an owner on another machine counts as gone


class RunInUseError(ValueError):
    """Another process works in this folder."""


class RunLock:
    """Holds a folder while its `with` block runs; the folder is made if it is not there.

    Args:
        work: What its owners do in the folder, for errors.
    """

    def __init__(self, folder: Path, work: Literal["train", "predict", "search"] = "train") -> None:
        self.folder = folder
        self.work = work
        self.path = folder / NAME
        self.about = {**_whoami(os.getpid()), "token": secrets.token_hex(8)}
        self._beats = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """
        Raises:
            RunInUseError: Another process holds the folder; says which.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._create():
            self._take_over(self._read())
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._is_ours():
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """
        Raises:
            RunInUseError: Somebody took the folder over, while this process slept perhaps.
        """
        if self._thread is not None and not self._is_ours():
            raise RunInUseError(f"{self.folder}: another process took this run over; this one ends")

    def _create(self) -> bool:
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            opened.write(self._text())
        return True

    def _take_over(self, owner: str | None) -> None:
        """Remove the lock of an owner that is gone.

        Raises:
            RunInUseError: It is alive.
        """
        if owner is None:  # removed in the meantime
            return
        about = _parse(owner)
        who = f"process {about.get('pid', '?')} on {about.get('host', 'an unknown machine')}"
        if self._is_alive(about, owner):
            raise RunInUseError(
                f"{self.folder}: {who} is {self.work}ing in this folder; wait until it ends, or choose another --out"
            )
        aside = self.path.with_name(f"{NAME}.{self.about['token']}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if _parse(aside.read_text("utf-8", "replace")).get("token") != about.get("token"):
            aside.rename(self.path)  # somebody else was faster, and lives
            raise RunInUseError(
                f"{self.folder}: another process has just begun to {self.work} in this folder"
            )
        aside.unlink(missing_ok=True)

    def _is_alive(self, about: dict[str, Any], owner: str) -> bool:
        here = _whoami(os.getpid())
        place = ("host", "boot", "namespace")
        if all(here[key] is not None and about.get(key) == here[key] for key in place):
            pid = about.get("pid")
            return isinstance(pid, int) and pid != here["pid"] and _started(pid) == about.get("started")
        print(
            f"crossformer: {self.folder} has a lock of {about.get('host', 'an unknown machine')}; watching for "
            f"{PATIENCE:.0f} seconds whether its owner lives",
            file=sys.stderr,
        )
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(min(0.5, PATIENCE / 10))
            if self._read() != owner:
                return True
        return False

    def _is_ours(self) -> bool:
        text = self._read()
        return text is not None and _parse(text).get("token") in (None, self.about["token"])

    def _read(self) -> str | None:
        try:
            return self.path.read_text("utf-8", "replace")
        except FileNotFoundError:
            return None

    def _text(self) -> str:
        return json.dumps({**self.about, "beats": f"{self._beats:012d}"})

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self._beats += 1
            with suppress(OSError):  # a full disk must not end the run
                if self._is_ours():
                    with self.path.open(
                        "r+", encoding="utf-8"
                    ) as file:  # of the same length: written in place
                        file.write(self._text())


def _whoami(pid: int) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "boot": _read_line("/proc/sys/kernel/random/boot_id"),
        "namespace": _namespace(),
        "pid": pid,
        "started": _started(pid),
    }


def _started(pid: int) -> str | None:
    """When a process of this machine started, in its kernel's ticks; None: there is none (or no /proc)."""
    line = _read_line(f"/proc/{pid}/stat")
    return None if line is None else line.rpartition(")")[2].split()[19]


def _namespace() -> str | None:
    """In which numbers of processes mean something: containers may share a host's name."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _read_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _parse(text: str) -> dict[str, Any]:
    """What a lock says; nothing where it was cut off."""
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
