"""Front, search and costs of settings, apart from any data."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

import crossformerpp  # noqa: F401 (registers our models with timm)
from crossformerpp.analysis.budget import Point, Search, Setting, Space, pareto_front
from crossformerpp.analysis.budget_report import best_within, compare, interval, quantile_budgets
from crossformerpp.analysis.cascade import Answers, cascade_at, cascade_curve, choose_threshold
from crossformerpp.analysis.complexity import count_complexity
from crossformerpp.analysis.group_costs import GroupCosts
from crossformerpp.data.writing import JsonLines

SPACE = Space(
    group_sizes=((2, 4, 8), (2, 4), (2,)),
    intervals=("adaptive", 1),
    lda=("regional", "spanning"),
    sizes=(32, 64),
    depths=(2, 1, 3),
)


def point(macs: int, search: float, held_out: float = 0.0, **more) -> Point:
    setting = SPACE.random(np.random.default_rng(macs))
    return Point(setting, macs, 1.0 * macs, search, search, held_out, **more)


def test_no_point_of_the_front_is_dominated_and_every_other_is() -> None:
    generator = np.random.default_rng(0)
    points = [point(int(macs), round(score, 1)) for macs, score in generator.random((60, 2)) * [50, 1]]
    front = pareto_front(points)

    def dominates(one: Point, other: Point) -> bool:
        no_worse = one.macs <= other.macs and one.search >= other.search
        return no_worse and (one.macs, one.search) != (other.macs, other.search)

    assert not any(dominates(one, other) for one in points for other in front)
    assert all(
        any(dominates(f, p) or (f.macs, f.search) == (p.macs, p.search) for f in front) for p in points
    )
    assert [p.macs for p in front] == sorted({p.macs for p in front})
    assert pareto_front([point(1, float("nan")), *points]) == front


def test_every_way_to_make_settings_stays_in_the_space() -> None:
    generator = np.random.default_rng(0)
    one, other = SPACE.random(generator), SPACE.random(generator)
    made = [SPACE.mutated(one, generator) for _ in range(50)]
    made += [SPACE.crossed(one, other, generator) for _ in range(20)]
    made += [SPACE.random(generator) for _ in range(50)]
    made += [*SPACE.neighbours(one), SPACE.uniform(-1, 64)]
    for setting in made:
        groups = setting.groups
        assert setting.size in SPACE.sizes
        for stage, depth in enumerate(SPACE.depths):
            assert len(groups.group_sizes[stage]) == len(groups.intervals[stage]) == depth
            assert set(groups.group_sizes[stage]) <= set(SPACE.group_sizes[stage])
            assert len(set(groups.group_sizes[stage])) == len(set(groups.intervals[stage])) == 1
        assert groups.rules()
    assert len(set(made)) > 60
    assert len({(s.groups.group_sizes[2], s.groups.lda) for s in made}) > 1


def test_per_block_each_block_has_its_own() -> None:
    space = replace(SPACE, per="block")
    assert space.count() == 2 * (2 * 6**2) * (2 * 4) * (2 * 2**3)
    generator = np.random.default_rng(0)
    sizes = {space.random(generator).groups.group_sizes[0] for _ in range(200)}
    assert len(sizes) > 4
    with_warnings = [space.random(generator).groups for _ in range(50)]
    with pytest.WarningsRecorder(_ispytest=True) as caught:
        for groups in with_warnings:
            groups.rules()
    assert not caught.list  # a size that spanning LDA does not use


def _search(measured: list[Setting], log: dict[str, Point] | None = None) -> Search:
    def macs(setting: Setting) -> int:
        return sum(map(sum, setting.groups.group_sizes)) * (setting.size or 0)

    def measure(setting: Setting) -> Point:
        name = json.dumps(setting.to_json())
        if log is not None and name in log:
            return log[name]
        measured.append(setting)
        score = sum(np.sqrt(size) for size, *_ in setting.groups.group_sizes) + 0.01 * (setting.size or 0)
        found = Point(setting, macs(setting), 1.0, score, score, score)
        if log is not None:
            log[name] = found
        return found

    start = SPACE.uniform(-1, 64)
    return Search(SPACE, [start, SPACE.uniform(0, 32)], measure, macs, lambda setting: setting)


def test_a_search_follows_from_its_seed_and_goes_on_from_its_log() -> None:
    one, other = list(_search([]).run(30, seed=1)), list(_search([]).run(30, seed=1))
    assert one == other
    assert len({p.setting for p in one}) == len(one) == 30
    assert one != list(_search([]).run(30, seed=2))
    log, measured = dict[str, Point](), list[Setting]()
    stopped = _search(measured, log).run(30, seed=1)
    assert [next(stopped) for _ in range(11)] == one[:11]
    assert list(_search(measured, log).run(30, seed=1)) == one
    assert len(measured) == 30  # none twice


def test_a_search_finds_most_of_the_front_of_a_known_function() -> None:
    everything = _search([])
    spaces = [
        Setting(s.groups, size)
        for size in SPACE.sizes
        for s in {SPACE.random(np.random.default_rng(n)) for n in range(3000)}
    ]
    best = pareto_front([everything.measure(setting) for setting in spaces])
    found = pareto_front(list(_search([]).run(60, seed=0)))
    for wanted in best:
        reached = best_within(found, wanted.macs)
        assert reached is not None
        assert reached.search >= wanted.search - 0.35
    assert sum((w.macs, w.search) in {(f.macs, f.search) for f in found} for w in best) >= len(best) / 2


def test_a_search_ends_where_the_space_does() -> None:
    small = replace(SPACE, group_sizes=((2, 4), (2,), (2,)), intervals=(1,), lda=("regional",), sizes=(32,))
    search = replace(_search([]), space=small, starts=[small.uniform(0, 32)])
    assert len(list(search.run(50, seed=0))) == 2


def test_costs_are_those_of_a_model_made_with_the_groups() -> None:
    options = {"embed_dim": 16, "depths": (2, 1, 3), "num_heads": (1, 1, 2), "num_classes": 5}
    options["kernel_sizes"] = ((4, 8), (2, 4), (2, 4))
    model = timm.create_model(
        "crossformerpp_small", **options, group_sizes=(4, 4, 2), intervals=(2, 1, 1)
    ).eval()
    images = torch.randn(1, 3, 60, 92)
    costs = GroupCosts(model, lambda: model(images))
    assert costs.sides == [23, 12, 6]
    generator, seen = np.random.default_rng(0), {}
    for _ in range(12):
        groups = SPACE.random(generator).groups
        made = timm.create_model("crossformerpp_small", **options, **groups.options()).eval()
        made.load_state_dict(model.state_dict())
        assert costs.macs(groups) == count_complexity(made, images).macs
        with torch.inference_mode():
            outputs = made(images)
        assert torch.equal(seen.setdefault(costs.key(groups), outputs), outputs)  # equal keys, equal networks
    assert len(seen) > 5


def test_a_comparison_is_paired() -> None:
    front = [point(10, 0.5, 0.5, resampled=(0.4, 0.6)), point(20, 0.7, 0.7, resampled=(0.6, 0.8))]
    rivals = {
        (20, "published"): [point(20, 0, 0.6, resampled=(0.5, 0.7))],
        (15, "random"): front,
        (5, "x"): front,
    }
    published, random = compare(front, rivals)  # nothing of the front costs 5
    assert published.difference == pytest.approx(0.1)
    assert (published.low, published.high) == pytest.approx((0.1, 0.1))  # in every draw
    assert (random.front_score, random.score, random.count) == (0.5, pytest.approx(0.6), 2)
    assert quantile_budgets(front, published=30) == [10, 20, 30]
    assert quantile_budgets(front, published=5) == [5]


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator, hits = np.random.default_rng(0), 0
    for _ in range(300):
        sample = generator.random(100) < 0.8
        means = [generator.choice(sample, 100).mean() for _ in range(200)]
        low, high = interval(means)
        hits += low <= 0.8 <= high
    assert 0.88 <= hits / 300 <= 0.99
    assert np.isnan(interval([])).all()


def test_a_cascade_is_what_doing_it_image_by_image_gives() -> None:
    generator = np.random.default_rng(0)
    small = Answers(generator.random(500), generator.random(500) < 0.7, macs=10)
    large = Answers(generator.random(500), generator.random(500) < 0.8, macs=30)
    right = spent = 0
    for confidence, one, other in zip(small.confidence, small.right, large.right, strict=True):
        right += other if confidence < 0.4 else one
        spent += 40 if confidence < 0.4 else 10
    found = cascade_at(small, large, 0.4)
    assert (found.accuracy, found.macs) == pytest.approx((right / 500, spent / 500))
    curve = cascade_curve(small, large)
    assert (curve[0].share, curve[0].accuracy) == (0.0, small.right.mean())
    assert (curve[-1].share, curve[-1].accuracy) == (1.0, large.right.mean())
    assert [p.macs for p in curve] == sorted(p.macs for p in curve)


def test_the_chosen_threshold_is_the_cheapest_that_loses_nothing() -> None:
    right = np.array([False, True, True, True, True])
    small = Answers(np.array([0.3, 0.5, 0.7, 0.9, 1.0]), right, macs=1)
    chosen = choose_threshold(small, Answers(np.ones(5), np.ones(5, dtype=bool), macs=5))
    assert (chosen.share, chosen.accuracy) == (0.2, 1.0)
    assert 0.3 < chosen.threshold < 0.5
    never = choose_threshold(small, Answers(np.ones(5), right[::-1], macs=5))
    assert never.share == 0.0


def test_a_log_survives_a_kill_in_the_middle_of_a_line(tmp_path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    for number in range(3):
        log.append({"number": number, "value": float("nan")})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"number": 3, "val')
    again = JsonLines(path)
    assert [entry["number"] for entry in again.entries] == [0, 1, 2]
    assert path.read_bytes() == whole
    again.append({"number": 4})
    assert [entry["number"] for entry in JsonLines(path).entries] == [0, 1, 2, 4]
    path.write_bytes(whole.replace(b"{", b"[", 1))
    with pytest.raises(ValueError, match=r"log\.jsonl: line 1 is damaged"):
        JsonLines(path)
