"""A page that runs this folder's model on an uploaded picture.

pip install -r requirements.txt
python app.py
"""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

import crossformerpp
from crossformerpp.data.images import read_image, require_shape

FOLDER = Path(__file__).resolve().parent
predictor = crossformerpp.from_pretrained(FOLDER)


def answer(path: str | None) -> tuple[Image.Image, list[list[str]]]:
    """The annotated picture, and the rows of the table."""
    if path is None:
        raise gr.Error("Upload a picture first.")
    try:
        image = read_image(path, "this picture")
        require_shape(image, "this picture")
        found = predictor(image)
    except ValueError as error:
        raise gr.Error(str(error)) from None
    return found.pictures(image)[""], [list(row) for row in found.rows()]


def page() -> Any:
    """The page, not yet served."""
    return gr.Interface(
        answer,
        gr.Image(type="filepath", label="Picture"),
        [gr.Image(type="pil", label="Answer"), gr.Dataframe(headers=list(predictor.columns), label="Found")],
        title=FOLDER.name,
        flagging_mode="never",
    )


if __name__ == "__main__":
    page().launch()
