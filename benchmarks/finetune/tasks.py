"""The tasks by name; what they are made of is imported when one is taken."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.finetune.task import Settings, Task


def _digits(settings: Settings | None) -> Task:
    from benchmarks.finetune.digits_task import DigitsTask

    return DigitsTask(settings)


def _video(settings: Settings | None) -> Task:
    from benchmarks.finetune.video_task import VideoTask

    return VideoTask(settings)


def _video_large(settings: Settings | None) -> Task:
    from benchmarks.finetune.video_task import LargeVideoTask

    return LargeVideoTask(settings)


def _segmentation(settings: Settings | None) -> Task:
    from benchmarks.finetune.segmentation_task import SegmentationTask

    return SegmentationTask(settings)


TASKS: dict[str, Callable[[Settings | None], Task]] = {
    "digits": _digits,
    "video": _video,
    "segmentation": _segmentation,
    "video-large": _video_large,
}

FOR_A_GPU = ("video-large",)
"""Hours on a GPU, and nothing for a CPU."""
