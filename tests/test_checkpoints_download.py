"""Weights by name: real gdown and real HTTP, to a server on this machine that answers as Google Drive does."""

import io
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import timm
import torch
import yaml

import crossformerpp  # noqa: F401 (registers the models)
from crossformerpp import cli
from crossformerpp.checkpoints import convert, download, to_released
from crossformerpp.models import VARIANTS

NAME = "crossformer_tiny"
CONFIRM = (  # in one line, as Google writes it
    '<html><body><form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="confirm" value="t"></form></body></html>'
)
QUOTA = '<html><p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></html>'


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the authors release them, with random weights in half precision."""
    torch.manual_seed(0)
    weights = timm.create_model(NAME).half().state_dict()
    path = tmp_path_factory.mktemp("released") / "crossformer-t.pth"
    torch.save({"model": to_released(weights)}, path)
    return path


class Drive:
    """What the server has, and what it was asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.page: str | None = None  # in the place of the file
        self.cut: int | None = None  # after so many bytes the connection ends
        self.requests: list[str] = []


@pytest.fixture
def drive(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drive]:
    """Google Drive, as far as a download sees it: a page that asks for confirmation, then the file, in ranges."""
    state = Drive(released.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            state.requests.append(f"{self.path} {start[1] if start else ''}".strip())
            if "confirm" not in parse_qs(urlsplit(self.path).query):
                self._send(200, (state.page or CONFIRM.format(id="x")).encode(), "text/html; charset=utf-8")
                return
            offset = int(start[1]) if start else 0
            headers = {"Content-Disposition": 'attachment; filename="weights.pth"'}
            if start:
                total = len(state.content)
                headers["Content-Range"] = f"bytes {offset}-{total - 1}/{total}"
            self._send(206 if start else 200, state.content[offset:], "application/octet-stream", headers)

        def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            cut = state.cut if headers else None
            self.wfile.write(body[:cut])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    send = requests.adapters.HTTPAdapter.send

    def to_here(self: Any, request: Any, *arguments: Any, **settings: Any) -> Any:
        parts = urlsplit(request.url)
        assert parts.hostname in ("drive.google.com", "drive.usercontent.google.com")
        request.url = f"http://127.0.0.1:{server.server_port}{parts.path}?{parts.query}"
        return send(self, request, *arguments, **settings)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", to_here)
    monkeypatch.setattr(download, "_RETRIES", 0)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(download.FOLDER, raising=False)
    yield state
    server.shutdown()
    server.server_close()


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def weights(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            cli.main(["weights", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert isinstance(exit.value.code, int)
        return exit.value.code, out, err

    return run


def kept(tmp_path: Path) -> list[str]:
    """Of the cache, without locks and parts of files."""
    folder = tmp_path / "torch" / "hub" / "crossformerpp"
    return sorted(path.name for path in folder.glob("*") if path.suffix not in (".lock", ".part"))


def test_weights_come_once_by_name(drive: Drive, weights: Command, released: Path, tmp_path: Path) -> None:
    status, out, _ = weights(NAME)
    assert status == 0
    assert [request.partition("?")[0] for request in drive.requests] == ["/uc", "/download"]
    assert f"id={download.releases()[NAME].drive}" in drive.requests[0]
    assert kept(tmp_path) == [f"{NAME}.safetensors"]
    expected = tmp_path / "expected.safetensors"
    convert(released, expected, NAME)
    assert Path(out.strip()).read_bytes()[-10_000:] == expected.read_bytes()[-10_000:]
    assert weights(NAME, "--json")[0] == 0
    loaded = timm.create_model(NAME, pretrained=True).state_dict()
    few = timm.create_model(NAME, pretrained=True, num_classes=7, in_chans=1)
    maps = timm.create_model(NAME, pretrained=True, features_only=True)(torch.zeros(1, 3, 64, 64))
    assert len(drive.requests) == 2, "what is in the cache is not asked for again"
    original = timm.create_model(NAME, checkpoint_path=str(expected)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in original.items())
    assert few(torch.zeros(1, 1, 64, 64)).shape == (1, 7)
    assert [map.shape[1] for map in maps] == [64, 128, 256, 512]


def test_a_broken_download_goes_on_where_it_was(drive: Drive, weights: Command, tmp_path: Path) -> None:
    drive.cut = len(drive.content) // 3
    status, _, err = weights(NAME)
    assert status == 2
    assert "not downloaded" in err
    assert "what has arrived is kept, and the same command goes on" in err
    assert kept(tmp_path) == []
    drive.cut = None
    assert weights(NAME)[0] == 0
    offset = int(drive.requests[-1].rpartition(" ")[2])
    assert 0 < offset <= len(drive.content) // 3, "only the rest is asked for"
    assert kept(tmp_path) == [f"{NAME}.safetensors"]


def test_refusals_are_said(drive: Drive, weights: Command, tmp_path: Path) -> None:
    for page, said in (
        (QUOTA, "Too many users have viewed or downloaded this file recently."),
        ("<html>Sign in</html>", "Cannot retrieve the public link of the file."),
    ):
        drive.page = page
        status, out, err = weights(NAME)
        assert (status, out) == (2, "")
        assert f"Google Drive refuses the file ({said}" in err
        assert f"https://drive.google.com/file/d/{download.releases()[NAME].drive}/view" in err
        assert err.count("\n") == 1
    assert kept(tmp_path) == []


@pytest.mark.parametrize("kind", ["page", "model", "code"])
def test_a_file_that_is_not_the_models_is_not_kept(
    drive: Drive, weights: Command, tmp_path: Path, kind: str
) -> None:
    content = io.BytesIO()
    if kind == "page":
        content.write(b"<!DOCTYPE html><html>Virus scan warning</html>")
    elif kind == "model":
        model = timm.create_model("crossformerpp_small", depths=(1, 1, 1, 1))
        torch.save({"model": to_released(model.state_dict())}, content)
    else:
        torch.save({"model": print}, content)
    whole, drive.content = drive.content, content.getvalue()
    status, _, err = weights(NAME)
    assert status == 2
    assert f"{NAME}: what Google Drive sent is not its weights" in err
    assert kept(tmp_path) == []
    drive.content = whole
    assert weights(NAME)[0] == 0


def test_offline_it_says_what_to_do(drive: Drive, weights: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, request: Any, *_: Any, **__: Any) -> Any:
        raise requests.exceptions.ConnectionError("Name or service not known")

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", fail)
    status, _, err = weights(NAME)
    assert status == 2
    assert "not downloaded (Name or service not known)" in err
    assert download.FOLDER in err
    with pytest.raises(ValueError, match="not downloaded"):
        timm.create_model(NAME, pretrained=True)


def test_a_folder_takes_the_networks_place(
    drive: Drive, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv(download.FOLDER, str(folder))
    with pytest.raises(ValueError, match=rf"has no {NAME}.safetensors and no {NAME} or crossformer-t.pth"):
        timm.create_model(NAME, pretrained=True)
    (folder / released.name).symlink_to(released)
    path = download.pretrained_file(NAME)
    assert path == download.cached_file(NAME)
    path.rename(folder / f"{NAME}.safetensors")
    assert download.pretrained_file(NAME).parent == folder
    (folder / f"{NAME}.safetensors").rename(folder / "crossformer_small.safetensors")
    with pytest.raises(ValueError, match="weights of crossformer_tiny, not of crossformer_small"):
        download.pretrained_file("crossformer_small")
    assert drive.requests == []


def test_files_from_baidu_are_taken_by_hand(
    drive: Drive, weights: Command, released: Path, tmp_path: Path
) -> None:
    status, _, err = weights("crossformerpp_small")
    assert status == 2
    assert "https://pan.baidu.com/s/1smc_kRoogd0Ig5vfqwuGTA (key crsf)" in err
    assert "crossformer weights crossformerpp_small --file FILE" in err
    assert weights("crossformerpp_small", "--file", released)[0] == 2
    assert kept(tmp_path) == []
    assert weights(NAME, "--file", released)[0] == 0
    assert kept(tmp_path) == [f"{NAME}.safetensors"]
    status, out, _ = weights("--json")
    rows = yaml.safe_load(out)
    assert {row["name"]: row["here"] for row in rows} == {name: name == NAME for name in VARIANTS}
    assert weights("crossformer_tinny")[0] == 2
    assert drive.requests == []


SMALL = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 1, 1)}


@pytest.mark.parametrize("out_indices", [None, (0, 1), (1, 3), (2,)])
def test_feature_extractors_take_the_file_of_a_classifier(tmp_path: Path, out_indices: Any) -> None:
    torch.manual_seed(0)
    classifier = timm.create_model("crossformerpp_small", **SMALL).eval()
    file = tmp_path / "whole.pth"
    options = {**SMALL, "features_only": True, "checkpoint_path": str(file)}
    if out_indices is not None:
        options["out_indices"] = out_indices
    state = classifier.state_dict()
    torch.save(state, file)
    images = torch.randn(1, 3, 64, 96)
    maps = timm.create_model("crossformerpp_small", **options).eval()(images)
    expected = classifier.forward_intermediates(
        images, indices=list(out_indices or range(4)), intermediates_only=True
    )
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))
    torch.save({key: value for key, value in state.items() if not key.startswith(("head.", "norm."))}, file)
    timm.create_model("crossformerpp_small", **options)  # a backbone alone
    for change in (
        {"stages.0.embedding.norm.weight": None},
        {"stages.0.more": state["norm.weight"]},
        {"heads": state["norm.bias"]},
    ):
        wrong = {key: value for key, value in {**state, **change}.items() if value is not None}
        torch.save(wrong, file)
        with pytest.raises(RuntimeError, match=next(iter(change))):
            timm.create_model("crossformerpp_small", **options)
