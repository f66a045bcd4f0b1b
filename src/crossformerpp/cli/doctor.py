"""`crossformer data doctor`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from crossformerpp.cli.output import say, show, show_json, show_table, track
from crossformerpp.cli.train import AsJson, Overwrite


def doctor(
    path: Annotated[
        Path,
        typer.Argument(help="A data set in any format that `train` takes, or an annotation file."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for index.html and findings.csv.")] = Path("doctor"),
    task: Annotated[
        Literal["classification", "detection", "segmentation"] | None,
        typer.Option(help="Task of the data; default: detected."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Run, checkpoint or timm model that computes the features; default: features of the pixels."
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option(help="Use timm's pretrained weights of --model, downloaded if necessary.")
    ] = False,
    similarity: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Lowest cosine similarity of near duplicates.")
    ] = 0.95,
    labels: Annotated[bool, typer.Option(help="Look for label errors.")] = True,
    images: Annotated[Path | None, typer.Option(help="As in `data check`.")] = None,
    palette: Annotated[Path | None, typer.Option(help="As in `data check`.")] = None,
    ignore_label: Annotated[int, typer.Option(min=0, max=65535, help="As in `data check`.")] = 255,
    mask_values: Annotated[str | None, typer.Option(help="As in `data check`.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Look for duplicates, leaks between splits, label errors, broken and odd images; nothing is changed."""
    from crossformerpp.analysis.doctor_page import PAGE, TABLE, counts, write_diagnosis
    from crossformerpp.data.doctor.examine import examine
    from crossformerpp.data.doctor.findings import KINDS
    from crossformerpp.data.doctor.subjects import open_subjects
    from crossformerpp.data.writing import refuse_taken

    refuse_taken(out, overwrite)
    if pretrained and model is None:
        raise ValueError("--pretrained needs --model NAME, a timm model")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise ValueError(f"{out}: inside the data set, where training would find it; choose another --out")
    subjects = open_subjects(
        path,
        task,
        images=images,
        palette=palette,
        ignore_label=ignore_label,
        mask_values=values_of(mask_values),
    )
    describe = None
    if model is not None:
        from crossformerpp.tasks.features import open_features

        describe = open_features(model, pretrained)
    diagnosis = examine(
        subjects,
        lambda numbers, title: track(numbers, len(numbers), title),
        describe=describe,
        similarity=similarity,
        with_labels=labels,
    )
    about = [
        ("data", str(path)),
        ("near duplicates", f"cosine similarity of at least {similarity:g}"),
        ("features", "of the pixels" if describe is None else describe.about),
        (
            "label errors",
            "5-fold logistic regression, confident learning (cleanlab)" if labels else "not looked for",
        ),
    ]
    write_diagnosis(out, diagnosis, f"{path.resolve().name}, examined", about)
    found = counts(diagnosis.findings)
    if as_json:
        show_json(
            {"images": len(subjects.samples), "findings": found, "notes": diagnosis.notes, "out": str(out)}
        )
    else:
        show_table(("finding", "count", "meaning"), [(k, str(n), KINDS[k]) for k, n in found.items()])
        for line in diagnosis.notes or ([] if found else ["nothing found"]):
            show(line)
    say(f"open {out / PAGE} in a browser; all findings are in {out / TABLE}")


def values_of(text: str | None) -> list[int] | None:
    """The numbers in an option such as 0,255."""
    if text is None:
        return None
    try:
        return [int(value) for value in text.split(",")]
    except ValueError:
        raise ValueError(f"--mask-values {text}: expected whole numbers such as 0,255") from None
