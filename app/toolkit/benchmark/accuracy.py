"""A way's accuracy, through the very runner that is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from app.toolkit.benchmark.agreeing import Answers, of_image
from app.toolkit.benchmark.request import BenchmarkRequest
from app.toolkit.benchmark.result import Accuracy
from app.toolkit.benchmark.runners import Runner
from app.toolkit.coco import Prediction, coco_results, score
from app.toolkit.detections import COCO_NMS
from app.toolkit.images import LetterboxFrame, read_image
from app.toolkit.models.base import ImageModel
from app.toolkit.verification.data import Sample, VerificationData, check_size, read_data, sampled
from app.toolkit.verification.subject import TASKS


def labelled_images(request: BenchmarkRequest, model: ImageModel) -> VerificationData | None:
    """The request's images that have labels which fit the model's answers, `sample` of them; None without any.

    Every image is read once, before any time is spent on timing. Raises NoImages, InvalidAnnotations, UnreadableImage:
    a figure on other images than the request's would not be the request's figure.
    """
    if request.images is None or model.head == "raw":
        return None
    data = read_data(request.images, request.annotations, model.names, task=TASKS[model.head])
    if data.coco is None:
        data = replace(data, samples=tuple(one for one in data.samples if one.label is not None))
    if not data.samples:
        return None
    data = sampled(data, request.sample)
    for sample in data.samples:
        check_size(sample, read_image(sample.path))
    return data


def why_no_accuracy(model: ImageModel, data: VerificationData | None) -> str:
    """For the notes, where images were given and no accuracy came of them; `data` is what `labelled_images` found."""
    if model.head == "raw":
        why = "what the model's answers mean is not known"
    elif data is not None:
        why = "no way's answers could be evaluated"
    elif TASKS[model.head] == "boxes":
        why = "its images have no labels for a detector, which takes COCO annotations"
    else:
        why = "its images have no labels for a classifier, which takes folders of its classes' names"
    return f"`data` gave no accuracy: {why}"


def accuracy_of(model: ImageModel, runner: Runner, data: VerificationData, input_size: tuple[int, int]) -> Accuracy:
    """mAP on COCO's labels at COCO's settings, else the share of images whose best class is their label, 0..1."""
    seen = _answers(model, runner, data.samples, input_size)
    if data.coco is None:
        hits = [int(model.probabilities(answers)[0].argmax()) == sample.label for sample, answers, _ in seen]
        return Accuracy(len(hits), top1=float(np.mean(hits)))
    predictions: list[Prediction] = []
    for sample, answers, frame in seen:
        assert sample.image_id is not None  # noqa: S101 - COCO's images have one; this tells the type checker
        (found,) = model.postprocess(answers, [frame], COCO_NMS)
        predictions.extend(coco_results(found, sample.image_id, data.coco.category_ids))
    file_name_of = dict(zip(data.coco.image_ids, data.coco.file_names, strict=True))
    image_ids = tuple(sample.image_id for sample in data.samples if sample.image_id is not None)
    file_names = tuple(file_name_of[image_id] for image_id in image_ids)
    result = score(predictions, replace(data.coco, image_ids=image_ids, file_names=file_names))
    return Accuracy(result.images, map50=result.map50, map50_95=result.map50_95)


def _answers(
    model: ImageModel, runner: Runner, samples: tuple[Sample, ...], input_size: tuple[int, int]
) -> Iterator[tuple[Sample, Answers, LetterboxFrame]]:
    """Of each image its answers [1, ...], from full batches; the last one is filled up with its last image."""
    (spec,) = runner.inputs
    size = runner.batch_size
    for begin in range(0, len(samples), size):
        batch = samples[begin : begin + size]
        tensors, frames = zip(*(model.preprocess(read_image(one.path), input_size) for one in batch), strict=True)
        filled = np.concatenate([*tensors, *[tensors[-1]] * (size - len(batch))])
        answers = runner.infer({spec.name: filled.astype(spec.dtype, copy=False)})
        for index, (sample, frame) in enumerate(zip(batch, frames, strict=True)):
            yield sample, of_image(answers, index, size), frame
