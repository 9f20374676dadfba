# SPDX-License-Identifier: Apache-2.0
"""All recipes as a section of the page of published tables."""

from __future__ import annotations

from convary.train.recipes import RECIPES, TrainingRecipe


def as_markdown() -> str:
    """All recipes as a section of a page."""
    head = "| recipe | epochs | batch | optimizer | lr | decay | dropout | T falls over | images |"
    lines = [head, "|---|---:|---:|---|---|---|---|---|---|", *map(_line, RECIPES.values())]
    sources: dict[str, list[str]] = {}
    for recipe in RECIPES.values():
        sources.setdefault(recipe.source, []).append(recipe.name)
    below = [f"- {', '.join(names)}: {source}." for source, names in sources.items()]
    unread = [recipe for recipe in RECIPES.values() if recipe.recalled]
    recalled = [f"- {recipe.name}: recalled, not read again: {', '.join(recipe.recalled)}." for recipe in unread]
    return "\n".join(["## Recipes", "", _SAID, *lines, "", *below, *recalled, ""])


_SAID = """\
`convary compare --recipe NAME` trains any network by one of these; each field has a flag that overrides it, and the
results name both. sgd has momentum 0.9; rmsprop too, and keeps 0.9 of its squares. A learning rate falls along a cosine
to 0, to a tenth after the epochs given, or by a factor each time; where it rises first, that is counted from the first
step all the same. "all" decays every parameter,
"weights" all but biases and those of one axis, "kernels" also no router or gate. Of several rates each network gets
the best on held-out training images. `best-small` is no paper's: [our study](evidence.md) came to it, and it trains
CondConv with routers that start neutral beside the static network and a static one of equal multiply-adds. Crops:
training is on random resized crops, mirrored at random, and testing on
the centre of an image whose shorter side is 8/7 of what the network sees; RandAugment is timm's.
"""


def _line(recipe: TrainingRecipe) -> str:
    falls = f", a tenth after {', '.join(map(str, recipe.milestones))}" if recipe.milestones else ", cosine"
    if recipe.exponential:
        falls = ", times {:g} every {:g} epochs".format(*recipe.exponential)
    rises = f", rises over {recipe.warmup_epochs:g}" if recipe.warmup_epochs else ""
    smooth = f", label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else ""
    anneal = "–" if recipe.anneal_epochs is None else f"{recipe.anneal_epochs:g} epochs"
    images = [
        "" if recipe.crops else "as they are",
        f"{recipe.image_size} pixels" if recipe.image_size else "",
        "bicubic" if recipe.interpolation == "bicubic" else "",
        f"RandAugment {recipe.rand_augment}" if recipe.rand_augment else "",
        f"erasing {recipe.erasing:g}" if recipe.erasing else "",
        f"mixup {recipe.mixup:g}" if recipe.mixup else "",
        f"(rises over {recipe.mixup_epochs:g} epochs)" if recipe.mixup_epochs else "",
        f"CutMix {recipe.cutmix:g}" if recipe.cutmix else "",
        f"stochastic depth {recipe.stochastic_depth:g}" if recipe.stochastic_depth is not None else "",
        f"weights averaged at {recipe.ema:g}" if recipe.ema else "",
    ]
    told = ", ".join(part for part in ("crops" if recipe.crops else "", *images) if part).replace(", (", " (")
    optimizer = recipe.optimizer + (", Nesterov" if recipe.nesterov else "")
    rate = f"{' or '.join(f'{lr:g}' for lr in recipe.rates)}{falls}{rises}"
    cells = [recipe.name, str(recipe.epochs), str(recipe.batch_size), optimizer + smooth, rate,
             f"{recipe.weight_decay:g}, {recipe.decay}", f"{recipe.dropout:g}", anneal, told]  # fmt: skip
    return f"| {' | '.join(cells)} |"
