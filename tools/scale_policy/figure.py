"""Pictures of scale policies: rows of cells beside images, and their distribution over classes."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from torch import Tensor
from torch.utils.data import Dataset

from data.image_folder import PictureFolder
from tools.scale_policy.policy import SIZES, Policies

COLOURS = dict(zip(SIZES, ('#2c2a6b', '#2a7f9e', '#6cc08b', '#f2d95c'), strict=True))
PALE = 0.35  # opacity of a block that has no choice
MOST_ROWS = 24  # of pictures; the numbers have all
MOST_CLASSES = 24
EXTREMES = 3  # pictures at either end


def draw_pictures(title: str, policies: Policies, pictures: Dataset) -> Figure:
    """A row per picture: as the net sees it, its cells, and below them the full resolution's shares."""
    count = min(len(pictures), MOST_ROWS)
    figure = Figure(figsize=(width_of(policies), 1.1 * count + 0.7), layout='constrained')
    some = f', the first {count} of {len(pictures)} pictures' * (count < len(pictures))
    figure.suptitle(f'{title}: the scale each block prefers{some}', fontsize=10)
    draw_rows(figure, policies, pictures, list(range(count)))
    return figure


def draw_folder(title: str, policies: Policies, pictures: PictureFolder) -> Figure:
    """Above, the classes; below, the pictures that use full resolution most and least."""
    order = policies.by_share()
    ends = dict.fromkeys([*order[-EXTREMES:][::-1], *order[:EXTREMES][::-1]])
    classes = shown_classes(policies, pictures)
    heights = [0.24 * len(classes) + 1.3, 1.1 * len(ends) + 0.7]
    figure = Figure(figsize=(width_of(policies), sum(heights)), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    above.suptitle(f'{title}: the scale each block prefers, {len(pictures):,} pictures', fontsize=10)
    draw_classes(above, policies, pictures, classes)
    below.suptitle('The pictures that use full resolution most (above) and least (below)', fontsize=10)
    draw_rows(below, policies, pictures, list(ends))
    return figure


def width_of(policies: Policies) -> float:
    """In inches: nets of up to 100 blocks stay readable on a screen."""
    return 2.5 + max(5.5, min(0.3 * len(policies.blocks), 12))


def draw_rows(figure: Figure | SubFigure, policies: Policies, pictures: Dataset, chosen: list[int]) -> None:
    """The chosen pictures with their policies, the stages below the last, and what the colours mean."""
    ratios, reach = [1, width_of(policies) - 1.5], reach_of(policies.shares[chosen])
    panels = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=ratios)
    for (left, right), index in zip(panels, chosen, strict=True):
        left.imshow(pictures[index][0].permute(1, 2, 0).numpy())
        left.axis('off')
        draw_policy(right, policies, index, reach)
    mark_stages(panels[-1, 1], policies)
    key = [Patch(color=colour, label=size) for size, colour in COLOURS.items()]
    key.append(Patch(color='grey', alpha=PALE, label='pale: no choice; bars: share of the full resolution'))
    figure.legend(handles=key, loc='outside lower center', ncols=len(key), fontsize=8, frameon=False)


def reach_of(shares: Tensor) -> float:
    """How far from a half the shares are at most, in steps of 0.05, so that bars of all pictures have one scale."""
    return max(0.05, math.ceil(20 * (shares - 0.5).abs().max().item()) / 20)


def draw_policy(panel: Axes, policies: Policies, image: int, reach: float) -> None:
    """A cell per block in the colour of its size, and under those of elastic blocks the full resolution's share."""
    sizes, shares = policies.sizes(image), iter((policies.shares[image] - 0.5).tolist())
    for place, (block, size) in enumerate(zip(policies.blocks, sizes, strict=True)):
        panel.bar(place, 0.5, 1, 1.1, color=COLOURS[size], alpha=1 if block.elastic else PALE, ec='white', lw=1.5)
        if block.elastic:
            panel.bar(place, next(shares) / (2 * reach), 0.7, 0.5, color=COLOURS[size])
        if len(sizes) <= 40:
            dark = block.elastic and size in SIZES[:2]
            panel.text(place, 1.35, size, ha='center', va='center', fontsize=7, color='white' if dark else 'black')
    panel.axhline(0.5, color='grey', lw=0.6)
    panel.set(xlim=(-0.6, len(sizes) - 0.4), ylim=(0, 1.65), xticks=[])
    panel.set_yticks([0, 0.5, 1], [f'{share:.0%}' for share in (0.5 - reach, 0.5, 0.5 + reach)], fontsize=7)
    panel.spines[:].set_visible(False)


def mark_stages(panel: Axes, policies: Policies) -> None:
    """The numbers of the stages under the middle of their blocks."""
    stages = torch.tensor([block.stage for block in policies.blocks])
    for stage in stages.unique().tolist():
        middle = (stages == stage).nonzero().float().mean().item()
        panel.text(middle, -0.1, f'stage {stage}', ha='center', va='top', fontsize=8)


def shown_classes(policies: Policies, pictures: PictureFolder) -> list[int]:
    """The classes by their mean share, highest first; of many only those at either end."""
    shares, targets = policies.shares.mean(1), torch.tensor(pictures.index.labels())
    means = torch.stack([shares[targets == label].mean() for label in range(len(pictures.classes))])
    order = means.argsort(descending=True, stable=True).tolist()
    half = MOST_CLASSES // 2
    return order if len(order) <= MOST_CLASSES else order[:half] + order[-half:]


def draw_classes(figure: SubFigure, policies: Policies, pictures: PictureFolder, classes: list[int]) -> None:
    """For each class, how many of its pictures prefer full resolution block by block, and how the shares spread."""
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[width_of(policies) - 4, 2.5])
    targets = torch.tensor(pictures.index.labels())
    members = [targets == label for label in classes]
    full = torch.stack([policies.prefers_full[member].float().mean(0) for member in members]).numpy()
    drawn = left.imshow(100 * full, cmap='RdBu', vmin=0, vmax=100, aspect='auto', interpolation='nearest')
    figure.colorbar(drawn, ax=left, pad=0.01).ax.tick_params(labelsize=7)
    left.set_yticks(range(len(classes)), [pictures.classes[label] for label in classes], fontsize=8)
    some = f'; {len(classes)} of {len(pictures.classes)} classes' * (len(classes) < len(pictures.classes))
    left.set_title(f'pictures that prefer full resolution (%), by block{some}', fontsize=9)
    left.tick_params(length=0)
    mark_elastic_stages(left, policies)
    draw_spread(right, [100 * policies.shares.mean(1)[member].numpy() for member in members])


def mark_elastic_stages(panel: Axes, policies: Policies) -> None:
    """The stages below the middle of their elastic blocks, and lines between them."""
    stages = torch.tensor([block.stage for block in policies.elastic])
    places = {stage: (stages == stage).nonzero().float() for stage in stages.unique().tolist()}
    panel.set_xticks([place.mean().item() for place in places.values()], [f'stage {s}' for s in places], fontsize=8)
    for place in list(places.values())[1:]:
        panel.axvline(place.min().item() - 0.5, color='black', lw=0.8)


def draw_spread(panel: Axes, shares: list[np.ndarray]) -> None:
    """How the mean shares of each class spread, in the rows of the classes."""
    rows = range(len(shares))
    panel.boxplot(
        shares, orientation='horizontal', positions=rows, widths=0.6, flierprops={'ms': 2}, manage_ticks=False
    )
    panel.set_title('mean share of full resolution (%)', fontsize=9)
    panel.tick_params(labelsize=8, left=False, labelleft=False)
    panel.grid(alpha=0.3, axis='x')
