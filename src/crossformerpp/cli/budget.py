"""`crossformer analyze budget` and `analyze cascade`: accuracy of one network against what it costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from crossformerpp.cli.output import say, show_json, show_table, track
from crossformerpp.cli.train import AsJson, Overwrite

if TYPE_CHECKING:
    from crossformerpp.analysis.budget import Point, Setting
    from crossformerpp.analysis.budget_report import Comparison
    from crossformerpp.engine.budget import Judge

Run = Annotated[Path, typer.Argument(help="A run or a checkpoint of a CrossFormer.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Evaluate on other data; default: the run's validation data."),
]
Out = Annotated[Path | None, typer.Option(help="Output folder; default: RUN/budget, which --budget reads.")]


def budget(
    run: Run,
    data: Data = None,
    evaluations: Annotated[int, typer.Option(min=3, help="Number of settings to measure.")] = 48,
    group_sizes: Annotated[
        list[int] | None, typer.Option("--group-size", min=1, help="A group size to try; may be repeated.")
    ] = None,
    intervals: Annotated[
        list[str] | None, typer.Option("--interval", help="An interval to try, or adaptive; may be repeated.")
    ] = None,
    sizes: Annotated[
        list[int] | None,
        typer.Option("--size", min=32, help="An image size to try; may be repeated."),
    ] = None,
    per: Annotated[
        Literal["stage", "block"], typer.Option(help="Choose group size and interval per stage or per block.")
    ] = "stage",
    randoms: Annotated[
        int, typer.Option(min=0, help="Random settings of equal cost to compare with at each budget.")
    ] = 3,
    resamples: Annotated[
        int, typer.Option(min=0, help="Bootstrap samples of the held-out images, for confidence intervals.")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the search.")] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy against cost for many group sizes of one model, and keep the best settings."""
    from crossformerpp.analysis import budget_report as report
    from crossformerpp.analysis.budget import Search, pareto_front
    from crossformerpp.data.lock import RunLock
    from crossformerpp.engine.budget import Judge, default_space
    from crossformerpp.tasks.points import budget_folder

    judge = Judge(run, data, resamples)
    space = default_space(judge, per, group_sizes, intervals, sizes)
    folder = out or budget_folder(run)
    with RunLock(folder, "search"):
        log = folder / "evaluations.jsonl"
        if overwrite:
            log.unlink(missing_ok=True)
        judge.open_log(log)
        starts = [judge.own, *(space.uniform(place, size) for size in space.sizes for place in (0, -1))]
        search = Search(space, starts, judge.measure, judge.macs, judge.key)
        points = list(track(search.run(evaluations, seed), evaluations, "search"))
        front = pareto_front(points)
        if not front:
            raise ValueError(
                f"{run}: {judge.metric} is not a number in these images; measure on others: --data"
            )
        budgets = report.quantile_budgets(front, judge.macs(judge.own))
        rivals = list(judge.rivals(space, budgets, randoms, seed))
        measured: dict[tuple[int, str], list[Point]] = {}
        for rival in track(rivals, len(rivals), "rivals"):
            measured.setdefault((rival.budget, rival.name), []).append(judge.measure(rival.setting))
        found = [*front, *pareto_front(points, "ms"), *itertools.chain.from_iterable(measured.values())]
        compared = list(dict.fromkeys(found))
        timed = dict(zip(compared, judge.timed_in_turn(compared), strict=True))
        measured = {key: [timed[point] for point in group] for key, group in measured.items()}
        chosen = [timed[point] for point in points if point in timed]
        best = [*pareto_front(chosen), *pareto_front(chosen, "ms")]
        kept = sorted(dict.fromkeys(best), key=lambda point: point.macs)
        rows = report.compare(front, measured)
        _write(folder, judge, points, kept, measured, rows)
    _show(judge, kept, rows, folder, as_json)


def cascade(
    run: Run,
    data: Data = None,
    small: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of the small setting in the table of `analyze budget`; default: the cheapest."
        ),
    ] = None,
    large: Annotated[
        int | None, typer.Option(min=1, help="Number of the large setting; default: the most accurate.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, help="Bootstrap samples of the held-out images, for confidence intervals.")
    ] = 400,
    as_json: AsJson = False,
) -> None:
    """Choose the confidence below which a classifier repeats an image at a larger setting (--cascade)."""
    from crossformerpp.analysis.budget_report import write_rows
    from crossformerpp.analysis.cascade import draw_cascade
    from crossformerpp.data.writing import replacing_folder, write_json
    from crossformerpp.engine.budget import Judge
    from crossformerpp.engine.cascade import measure_cascade
    from crossformerpp.tasks.points import budget_folder, read_front

    judge = Judge(run, data)
    points = read_front(run, judge.saved).points
    best = max(range(len(points)), key=lambda place: (points[place].search, -points[place].macs)) + 1
    numbers = small or 1, large or best
    for option, number in zip(("--small", "--large"), numbers, strict=True):
        if number > len(points):
            raise ValueError(f"{option} {number}: the front has {len(points)} points")
    if numbers[0] == numbers[1]:
        raise ValueError(f"a cascade needs two points of the front; both are number {numbers[0]}")
    settings = [points[number - 1].setting for number in numbers]
    both = [judge.answers(judge.setting_of(setting)) for setting in track(settings, 2, "cascade")]
    found = measure_cascade(judge.saved.step, settings, both, resamples)
    section, folder = found.section, budget_folder(run)
    with replacing_folder(folder) as draft:
        write_rows([asdict(point) for point in found.curve], draft / "cascade.csv")
        draw_cascade(found.curve, found.chosen, found.small, found.large).savefig(
            draft / "cascade.png", dpi=90
        )
        write_json(draft / "cascade.json", section.model_dump(mode="json"))
    if as_json:
        show_json(section.model_dump(mode="json"))
        return
    middle = f"cascade: again below {section.threshold:.3f}, {section.share:.1%} of the images"
    rows = [
        ("small alone", f"{section.small_accuracy:.4f}", f"{section.small_macs / 1e6:.4g}M"),
        (middle, f"{section.accuracy:.4f}", f"{section.macs / 1e6:.4g}M"),
        ("large alone", f"{section.large_accuracy:.4f}", f"{section.large_macs / 1e6:.4g}M"),
    ]
    low, high = section.difference_low, section.difference_high
    title = "held-out images"
    if low is not None and high is not None:
        title += f"; cascade minus large: 95% interval {low:+.4f} to {high:+.4f}"
    show_table(("setting", "accuracy", "MACs, mean"), rows, title)
    if section.macs >= section.large_macs:
        say(
            "this cascade saves nothing: it costs no less than its large setting; pass another --small or --large"
        )
    say(
        f"cascade.json, cascade.csv and cascade.png are in {folder}; to use it: crossformer predict {run} --cascade"
    )


def _write(
    folder: Path,
    judge: Judge,
    points: Sequence[Point],
    kept: Sequence[Point],
    rivals: dict[tuple[int, str], list[Point]],
    rows: Sequence[Comparison],
) -> None:
    from crossformerpp.analysis import budget_report as report
    from crossformerpp.data.writing import replacing_folder, write_json

    with replacing_folder(folder) as draft:
        settings = {point.setting for point in kept}
        others = [point for point in points if point.setting not in settings]
        report.write_table([*others, *kept], kept, judge.metric, draft / "budget.csv")
        report.write_rows([asdict(row) for row in rows], draft / "rivals.csv")
        report.draw_front(points, kept, rivals, judge.metric).savefig(draft / "budget.png", dpi=90)
        write_json(draft / "front.json", _front(judge, kept))
        (draft / "recipes").mkdir()
        for number, point in enumerate(kept, start=1):
            _write_recipe(judge, point.setting, draft / "recipes" / f"point-{number}.yaml")
        written = {recipe.name for recipe in (draft / "recipes").iterdir()}
    for recipe in folder.glob("recipes/point-*.yaml"):
        if recipe.name not in written:  # of a longer front that was here before
            recipe.unlink()


def _front(judge: Judge, kept: Sequence[Point]) -> dict[str, Any]:
    from crossformerpp.analysis.budget_report import interval

    points = []
    for point in kept:
        low, high = interval(point.resampled)
        figures = {key: value for key, value in vars(point).items() if key != "resampled"}
        points.append(figures | {"setting": point.setting.to_json(), "low": low, "high": high})
    return {"step": judge.saved.step, "metric": judge.metric, "device": judge.device, "points": points}


def _write_recipe(judge: Judge, setting: Setting, path: Path) -> None:
    """The run's recipe at a setting, starting from its weights."""
    from crossformerpp.recipes.load import dump_recipe, parse_recipe
    from crossformerpp.tasks.points import recipe_at

    values = recipe_at(judge.saved.recipe, setting.to_json()).model_dump()
    values["model"]["checkpoint"], values["model"]["elastic"] = judge.saved.path.resolve(), None
    path.write_text(dump_recipe(parse_recipe(values, str(path))), encoding="utf-8")


def _show(
    judge: Judge, kept: Sequence[Point], rows: Sequence[Comparison], folder: Path, as_json: bool
) -> None:
    if as_json:
        show_json({**_front(judge, kept), "rivals": [asdict(row) for row in rows]})
        return
    from crossformerpp.analysis.budget_report import interval

    table = []
    for number, point in enumerate(kept, start=1):
        low, high = interval(point.resampled)
        groups = point.setting.groups.options()
        table.append(
            (
                str(number),
                f"{point.macs / 1e6:.4g}M",
                f"{point.ms:.3g}",
                f"{point.score:.4f}",
                f"{point.held_out:.4f}, {low:.4f} to {high:.4f}",
                str(point.setting.size or ""),
                " ".join(f"{name}={value}" for name, value in groups.items()),
            )
        )
    title = f"{judge.metric} of every point of the front; timed on {judge.device}"
    show_table(("point", "MACs", "ms", "all images", "held-out images", "size", "groups"), table, title)
    show_table(
        ("budget", "compared with", "its MACs", "its score", "front's score", "difference, 95% interval"),
        [
            (
                f"{row.budget / 1e6:.4g}M",
                row.rival if row.rival != "random" else f"{row.count} random, mean",
                f"{row.macs / 1e6:.4g}M",
                f"{row.score:.4f}",
                f"{row.front_score:.4f}",
                f"{row.difference:+.4f}, {row.low:+.4f} to {row.high:+.4f}",
            )
            for row in rows
        ],
        title="held-out images; paired bootstrap over images",
    )
    say(f"front.json, recipes/, budget.csv, rivals.csv and budget.png are in {folder}")
