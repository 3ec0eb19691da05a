"""What the classes of the three data sets are called, for checkpoints that name none, or by their folders only."""

import re

from torchvision.models import ResNet50_Weights
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from data.voc import CLASSES

NOT_CLASSES = '__background__', 'N/A'  # what stands in torchvision's list where COCO's numbers have gaps

# In the order of sorted folders, of the annotation file's categories, and of VOC's labels.
DATA_SETS: dict[str, list[str]] = {
    'imagenet': list(ResNet50_Weights.IMAGENET1K_V1.meta['categories']),
    'coco': [name for name in FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta['categories'] if name not in NOT_CLASSES],
    'voc': CLASSES,
}


def default_names(task: str, number: int) -> list[str]:
    """The names of the task's data set if it has so many classes, else their numbers."""
    names = DATA_SETS[task]
    return names if len(names) == number else [f'class {place}' for place in range(number)]


def readable_names(task: str, classes: list[str]) -> list[str]:
    """ImageNet's names for its 1000 folders, n01440764 and so on, in their order; other classes as they are."""
    names = DATA_SETS[task]
    folders = len(classes) == len(names) and all(re.fullmatch(r'n\d{8}', name) for name in classes)
    return names if task == 'imagenet' and folders and classes == sorted(classes) else classes
