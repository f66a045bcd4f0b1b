"""`crossformer demo`: one page that tells a run, looked at in a real browser where there is one."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossformerpp import engine
from crossformerpp.cli import demo, main
from crossformerpp.data.scenes import write_digit_scenes
from crossformerpp.recipes.load import parse_recipe
from crossformerpp.tasks.classification import report
from test_tasks_detection_run import recipe as detection
from test_tasks_segmentation_run import recipe as segmentation
from tiny import tiny_recipe

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LEAST_CONTRAST = 4.5  # of text and its background, WCAG 2 AA

# Every element that holds text of its own, with the contrast of its colour and what lies behind it.
CONTRASTS = """() => {
  const channels = color => {
    const canvas = new OffscreenCanvas(1, 1).getContext('2d');
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = color => channels(color).slice(0, 3)
    .map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (channels(color)[3] === 255) return color;
    }
    return 'white';
  };
  return [...document.body.querySelectorAll('*')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.checkVisibility())
    .map(e => {
      const [a, b] = [luminance(getComputedStyle(e).color), luminance(behind(e))];
      return [e.textContent.trim().slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    });
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny"
    engine.train(tiny_recipe("model.options.depths=[2, 1, 1, 1]"), path)
    return path


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    with pytest.raises(SystemExit) as exit:
        main(["demo", str(run)])
    assert exit.value.code == 0
    return run / "report.html"


def test_the_page_tells_what_the_run_found(run: Path, page: Path) -> None:
    facts = report.describe_run(run, seconds=0.1)
    assert facts.confusion.sum() == facts.num_samples == 450
    assert facts.confusion.trace() == 450 - facts.num_mistakes
    assert all(shown.truth not in (None, shown.top[0][0]) for shown in facts.mistakes)
    assert all(shown.truth is None for shown in facts.right)
    text = page.read_text()
    assert f"{facts.num_mistakes} mistakes in 450" in text
    assert text.count('<li class="wrong">') == min(facts.num_mistakes, report.NUM_MISTAKES)
    assert "<h2>Attention groups</h2>" in text


def test_the_page_needs_nothing_from_outside(page: Path) -> None:
    text = page.read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', text)
    assert len(sources) > 20
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in text
    assert "url(" not in text


def test_what_exists_is_kept(run: Path, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = page.stat().st_mtime_ns
    with pytest.raises(SystemExit) as exit:
        main(["demo", str(run)])
    assert exit.value.code == 2
    assert "report.html exists" in capsys.readouterr().err
    assert page.stat().st_mtime_ns == before


def test_without_a_run_the_digits_are_trained_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "train", lambda recipe, out, overwrite: shutil.copytree(run, out))
    for status in (0, 2):
        with pytest.raises(SystemExit) as exit:
            main(["demo", "--out", f"page-{status}.html"])
        assert exit.value.code == status
    assert (tmp_path / "page-0.html").stat().st_size > 100_000
    assert "`crossformer demo runs/demo` shows it" in capsys.readouterr().err


def test_an_unfinished_run_says_how_to_finish_it(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "half")
    (tmp_path / "half" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="train --resume"):
        report.describe_run(tmp_path / "half")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'"
    )
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser to look at the page with: install one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        # its sandbox does not start for root, and the page is our own
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", train=4, val=4, size=96)


@pytest.fixture(scope="module")
def detection_page(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "detection"
    values = detection(scenes, "mask_rcnn", 2).model_dump() | {"schedule": {"warmup_steps": 0}}
    engine.train(parse_recipe(values, "detection"), folder)
    return shown(folder)


@pytest.fixture(scope="module")
def segmentation_page(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "segmentation"
    engine.train(segmentation(scenes, "semantic_fpn", 2), folder)
    return shown(folder)


def shown(run: Path) -> Path:
    with pytest.raises(SystemExit) as exit:
        main(["demo", str(run)])
    assert exit.value.code == 0
    return run / "report.html"


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_dense_page_shows_truth_beside_prediction(task: str, request: pytest.FixtureRequest) -> None:
    page: Path = request.getfixturevalue(f"{task}_page")
    text = page.read_text()
    metrics = json.loads((page.parent / "metrics.json").read_text())
    name, key = {"detection": ("box AP", "box_AP"), "segmentation": ("mean IoU", "miou")}[task]
    assert f"<h1>{name} {metrics[key]:.1%} on {metrics['images']} images</h1>" in text
    assert text.count('<figure class="pair">') == metrics["images"]
    assert "Confusions" not in text
    assert "mistake" not in text
    rows = (page.parent / "per_class.csv").read_text().splitlines()[1:]
    assert any(re.search(rf"<td[^>]*>{row.split(',')[0]}</td>", text) for row in rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("which", ["page", "detection_page", "segmentation_page"])
def test_a_browser_shows_the_page(
    browser: Any, request: pytest.FixtureRequest, which: str, scheme: str, width: int
) -> None:
    page: Path = request.getfixturevalue(which)
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    view = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    view.on("console", lambda message: complaints.append(message.text))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto(page.as_uri())
    view.locator("summary").click()  # what is folded shall be readable too
    images = view.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    contrasts = view.evaluate(CONTRASTS)
    is_dark = view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 27)"
    overflow = view.evaluate("document.documentElement.scrollWidth - innerWidth")
    context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    assert len(images) > (20 if which == "page" else 3)
    assert all(images)
    assert len(contrasts) > (100 if which == "page" else 50)
    assert [found for found in contrasts if found[1] < LEAST_CONTRAST] == []
    assert is_dark == (scheme == "dark")
    assert overflow <= 0
