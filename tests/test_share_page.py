"""The page in a shared folder, in a real browser: a picture goes up, the answer comes back."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.test_cli_demo import BROWSERS
from tests.test_export import photograph, save

from crossformerpp import share
from crossformerpp.predict import load_predictor


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_browser_uploads_a_picture(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(
        "gradio", reason="gradio is not installed: pip install '.[page]', which lowers Pillow to 12"
    )
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser to look at the page with: install one of {', '.join(BROWSERS)}")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    checkpoint = save(task, tmp_path)
    folder = share.write_folder(checkpoint, tmp_path / "shared")
    photograph().save(tmp_path / "photograph.png")
    spec = importlib.util.spec_from_file_location("app", folder / "app.py")
    assert spec is not None
    assert spec.loader is not None
    app: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    page = app.page()
    page.launch(prevent_thread_lock=True, quiet=True)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
            view = browser.new_page()
            view.goto(page.local_url)
            view.locator("input[type=file]").first.set_input_files(tmp_path / "photograph.png")
            view.get_by_role("button", name="Submit").click()
            name, figure, *_ = load_predictor(checkpoint, "cpu")(photograph()).rows()[0]
            for text in (figure, name):  # innerText is what a reader sees
                view.wait_for_function(
                    "text => document.body.innerText.includes(text)", arg=text, timeout=60_000
                )
            shown = "[...document.images].filter(i => i.complete && i.naturalWidth > 0).length"
            view.wait_for_function(f"{shown} >= 2", timeout=60_000)  # the picture and the answer
            browser.close()
    finally:
        page.close()
