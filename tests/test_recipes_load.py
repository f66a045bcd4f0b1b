"""Recipes: every problem at once, with the nearest key; overrides; a page that reads back to itself."""

from pathlib import Path

import pytest

from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.load import dump_recipe, load_recipe, parse_recipe, recipe_names
from tiny import tiny_recipe, tiny_values


@pytest.mark.parametrize("name", recipe_names())
def test_every_page_is_a_recipe_and_reads_back_to_itself(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "page.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "page.yaml")) == recipe


def test_all_problems_are_said_at_once_with_the_nearest_key() -> None:
    values = tiny_values()
    values["optim"] = {"lrr": 1, "weight_decay": "much"}
    values["traner"] = {}
    values["trainer"] |= {"devices": 0, "steps": None}
    del values["data"]["source"]
    with pytest.raises(ValueError, match="recipe mine: ") as caught:
        parse_recipe(values, "mine")
    message = str(caught.value)
    for part in (
        "optim.lrr: unknown key, did you mean lr?",
        "optim.weight_decay: input should be a valid number",
        "(given: 'much')",
        "traner: unknown key, did you mean trainer?",
        "trainer.devices",
        "data.source: missing",
    ):
        assert part in message
    assert "\n" not in message


def test_overrides_are_yaml_and_may_open_sections() -> None:
    recipe = tiny_recipe(
        "optim.lr=1e-3",
        "model.options.depths=[1, 2, 3, 4]",
        "ema.decay=0.5",
        "trainer.precision=bf16-mixed",
        "ema=null",
    )
    assert recipe.optim.lr == 1e-3
    assert recipe.model.options["depths"] == [1, 2, 3, 4]
    assert recipe.trainer.precision == "bf16-mixed"
    assert recipe.ema is None
    assert tiny_recipe("ema=null", "ema.decay=0.5").ema is not None


@pytest.mark.parametrize("text", ["1e-3", "2E5", "1.5e-6", "-1e3", "+1.e2"])
def test_numbers_with_exponents_are_numbers_even_where_nothing_says_so(text: str) -> None:
    assert tiny_recipe(f"optim.options.eps={text}").optim.options["eps"] == float(text)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr"], "--set lr: expected the form a.b=value"),
        (["optim.lr.x=1"], r"--set optim.lr.x=1: optim.lr is 0.001, which has no keys"),
        (["optim.lr=[1"], r"--set optim.lr=\[1: not valid YAML"),
        (["trainer.epochs=3", "trainer.steps=3"], "give either epochs or steps"),
        (["schedule.name=multistep"], "milestones belong to the multistep schedule"),
        (["schedule.warmup_steps=1", "schedule.warmup_epochs=1"], "not both"),
        (
            ["data.source=digit"],
            "data.source: input should be 'digits', 'mnist', 'digit_labels' or 'folder'.*'digit'",
        ),
        (["data.size=16"], "data.size: .*greater than or equal to 32"),
        (["optim.lr=.nan"], "optim.lr: .*finite"),
    ],
)
def test_bad_overrides_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("digits", ["optim.lr=0.001", *overrides])


def test_a_page_that_does_not_exist_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="no recipe 'digit'; did you mean digits"):
        load_recipe("digit")
    with pytest.raises(ValueError, match=r"recipe gone\.yaml: no such file"):
        load_recipe("gone.yaml")


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("just text", "expected a mapping"),
        ("a: [1", "not valid YAML"),
        ("task: classification\ntask: detection", "'task' twice"),
        ("model: {name: x}", "task: None is none of classification"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_pages_that_are_no_recipes_are_refused(tmp_path: Path, page: str, message: str) -> None:
    (tmp_path / "page.yaml").write_text(page)
    with pytest.raises(ValueError, match=message):
        load_recipe(str(tmp_path / "page.yaml"))


def test_a_folder_of_data_takes_the_place_of_the_built_in_one(tmp_path: Path) -> None:
    recipe = load_recipe("digits", root=tmp_path)
    assert isinstance(recipe, ClassificationRecipe)
    assert recipe.data.source == "folder"
    assert recipe.data.root == tmp_path
    for name in ("digit_scenes/mask_rcnn", "digit_scenes/upernet"):
        assert load_recipe(name, root=tmp_path).data.source == "folder"
    assert load_recipe("ade20k/upernet_crossformer_small", root=tmp_path).data.source == "ade20k"
