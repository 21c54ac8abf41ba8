"""The network of a task of classes or points."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbeats.models.network import build_network

if TYPE_CHECKING:
    from torch import nn

    from fewbeats.finetuning.task import Task
    from fewbeats.models.network import NetworkSettings


def count_maps(task: Task) -> int:
    """Output channels of the segmentation network that a task's network is made of."""
    return len(task.points) if task.kind == "landmarks" else 2


def put_head(network: nn.Module, task: Task) -> nn.Module:
    """A task's network from one that gives maps, as `build_network` makes it with `count_maps` classes."""
    from fewbeats.finetuning.bags import StudyClassifier
    from fewbeats.finetuning.classification import ImageClassifier

    if task.kind == "classification":
        return ImageClassifier(network, len(task.slice_classes))
    if task.kind == "study":
        return StudyClassifier(network, len(task.classes), len(task.slice_classes) if task.present else 0)
    return network


def build_task_network(task: Task, settings: NetworkSettings) -> nn.Module:
    """A task's network from random weights, as it predicts: of several scales the finest alone."""
    from fewbeats.models.network import set_deep_supervision

    network = put_head(build_network(settings, classes=count_maps(task)), task)
    set_deep_supervision(network, False)
    return network
