"""The ImageNet pages are what timm's own train.py does with the flags that the paper's settings are."""

from argparse import Namespace

import pytest
import timm
import torch
from timm.data import create_transform
from timm.data.transforms_factory import transforms_imagenet_train
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

import crossformerpp
from crossformerpp.recipes.classification import ClassificationRecipe
from crossformerpp.recipes.load import load_recipe
from crossformerpp.tasks.classification import eval_transform, train_transform
from crossformerpp.tasks.classification.module import ClassificationModule
from crossformerpp.tasks.optim import Plan, build_optimizer, build_schedule

# train.py --opt adamw --lr-base 1e-3 --lr-base-size 1024 --weight-decay 0.05 --clip-grad 5 --sched cosine
#   --sched-on-updates --epochs 300 --warmup-epochs 20 --warmup-lr 1e-6 --min-lr 1e-5 --smoothing 0.1 --mixup 0.8
#   --cutmix 1.0 --aa rand-m9-mstd0.5-inc1 --reprob 0.25
FLAGS = Namespace(
    opt="adamw", weight_decay=0.05, momentum=0.9, sched="cosine", epochs=300, warmup_epochs=20, warmup_lr=1e-6,
    min_lr=1e-5, sched_on_updates=True,
)  # fmt: skip
DROP_PATH = {"tiny": 0.1, "small": 0.2, "base": 0.3, "large": 0.5, "huge": 0.7}  # Sec. 5.1


def page(name: str, *overrides: str) -> ClassificationRecipe:
    recipe = load_recipe(f"imagenet/{name}", overrides)
    assert isinstance(recipe, ClassificationRecipe)
    return recipe


@pytest.mark.parametrize("name", crossformerpp.VARIANTS)
def test_there_is_a_page_per_variant_with_its_drop_path(name: str) -> None:
    recipe = page(name)
    assert recipe.model.name == name
    assert recipe.model.options == {"drop_path_rate": DROP_PATH[name.rpartition("_")[2]]}
    assert {**recipe.model_dump(), "model": None} == {**page("crossformer_tiny").model_dump(), "model": None}


@pytest.mark.parametrize("batch_size", [1024, 512])
def test_every_steps_rate_of_every_group_is_that_of_timms_train_py(batch_size: int) -> None:
    recipe = page("crossformerpp_small", f"trainer.batch_size={batch_size}")
    with torch.device("meta"):
        model = timm.create_model("crossformerpp_small")
    plan = Plan.of(
        recipe.trainer, num_samples=7 * batch_size + 3
    )  # epochs of 7 steps, so that all can be walked
    scale = (
        batch_size / 1024
    )  # the released code scales the rates of the warm-up's start and of the end as well
    FLAGS.lr, FLAGS.warmup_lr, FLAGS.min_lr = 1e-3 * scale, 1e-6 * scale, 1e-5 * scale
    ours, theirs = build_optimizer(model, recipe), create_optimizer_v2(model, **optimizer_kwargs(FLAGS))
    own = build_schedule(ours, recipe, plan)
    reference, _ = create_scheduler_v2(theirs, **scheduler_kwargs(FLAGS), updates_per_epoch=7)
    assert plan.steps == 2100
    for step in range(plan.steps):
        if step:
            own.step_update(step)
            reference.step_update(step)
            if step % 7 == 0:  # train.py calls this after each epoch; by updates it changes nothing
                own.step(step // 7)
                reference.step(step // 7)
        rates = [group["lr"] for group in theirs.param_groups]
        assert [group["lr"] for group in ours.param_groups] == pytest.approx(rates, rel=1e-12)
    assert ours.param_groups[0]["lr"] == pytest.approx(1e-5 * scale, rel=0.01)
    for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert a["weight_decay"] == b["weight_decay"]
        assert [id(p) for p in a["params"]] == [id(p) for p in b["params"]]
        assert (a["betas"], a["eps"]) == ((0.9, 0.999), 1e-8) == (b["betas"], b["eps"])
    undecayed = {id(p) for group in ours.param_groups if not group["weight_decay"] for p in group["params"]}
    assert undecayed == {id(p) for name, p in model.named_parameters() if p.ndim < 2 or name.endswith("bias")}


def test_views_are_those_of_timms_train_py() -> None:
    recipe = page("crossformer_small")
    reference = transforms_imagenet_train(
        224, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), color_jitter=0.4, auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic", re_prob=0.25, re_mode="pixel", re_count=1,
    )  # fmt: skip
    assert str(train_transform(recipe)) == str(reference)
    assert str(eval_transform(recipe.data)) == str(
        create_transform(224, interpolation="bicubic", crop_pct=224 / 256)
    )
    large = page("crossformer_small", "data.size=384", "data.eval_resize=439")
    assert "Resize(size=439" in str(eval_transform(large.data))


def test_the_loss_is_that_of_timms_train_py() -> None:
    recipe = page("crossformer_tiny", "ema.decay=0.9999")
    module = ClassificationModule(torch.nn.Linear(2, 10), recipe, list("abcdefghij"))
    assert isinstance(module.criterion, SoftTargetCrossEntropy)
    mix = module.mix
    assert mix is not None
    settings = (
        mix.mixup_alpha,
        mix.cutmix_alpha,
        mix.mix_prob,
        mix.switch_prob,
        mix.label_smoothing,
        mix.mode,
    )
    assert settings == (0.8, 1.0, 1.0, 0.5, 0.1, "batch")
    assert module.ema is not None
    decays = [module.ema.get_decay(step) for step in (0, 1, 10, 1000, 10**7)]
    assert decays[0] == 0
    assert decays == sorted(decays)
    assert decays[-1] == 0.9999
