"""What can go wrong in the toolkit, as a tree. The toolkit knows no HTTP: a caller maps `code` to what it needs.

    ToolkitError
    ├── RequestError                    you asked for something that cannot be
    │   ├── InvalidInputSize            INVALID_INPUT_SIZE
    │   ├── ChannelsMismatch            CHANNELS_MISMATCH
    │   ├── UnsupportedOpset            UNSUPPORTED_OPSET
    │   ├── UnsupportedTask             UNSUPPORTED_TASK
    │   ├── FeedMismatch                FEED_MISMATCH
    │   ├── NoImages                    NO_IMAGES
    │   ├── UnreadableImage             UNREADABLE_IMAGE
    │   ├── InvalidPreprocessing        INVALID_PREPROCESSING
    │   ├── InvalidAnnotations          INVALID_ANNOTATIONS
    │   ├── InvalidTrainingSettings     INVALID_TRAINING_SETTINGS
    │   ├── UnknownLayer                UNKNOWN_LAYER
    │   ├── AlreadyQuantised            ALREADY_QUANTISED
    │   ├── UnknownProfile              UNKNOWN_PROFILE
    │   ├── PreflightFailed             PREFLIGHT_FAILED
    │   ├── BuildElsewhere              BUILD_ELSEWHERE
    │   ├── InvalidBuild                INVALID_BUILD
    │   ├── CalibrationMissing          CALIBRATION_MISSING
    │   ├── ReleaseUnsupported          RELEASE_UNSUPPORTED
    │   ├── InvalidQueries              INVALID_QUERIES
    │   └── ModelFileError              the file is not what was asked for
    │       ├── FileMissing             FILE_MISSING
    │       ├── EmptyFile               EMPTY_FILE
    │       ├── CorruptFile             CORRUPT_FILE
    │       ├── NotAModel               NOT_A_MODEL
    │       ├── LegacyCheckpoint        LEGACY_CHECKPOINT
    │       ├── TorchScriptFile         TORCHSCRIPT_FILE
    │       ├── StateDictWithoutModel   STATE_DICT_WITHOUT_MODEL
    │       ├── UnknownModelFamily      UNKNOWN_MODEL_FAMILY
    │       ├── UnknownBackbone         UNKNOWN_BACKBONE
    │       ├── InvalidCheckpoint       INVALID_CHECKPOINT
    │       ├── StateDictMismatch       STATE_DICT_MISMATCH
    │       ├── UnsafeCheckpoint        UNSAFE_CHECKPOINT (carries the names the file asked for)
    │       ├── UntrustedEngine         UNTRUSTED_ENGINE
    │       ├── InvalidOnnx             INVALID_ONNX
    │       ├── OnnxRefused             ONNX_REFUSED (carries the nodes' names)
    │       └── UnsupportedOperator     UNSUPPORTED_OPERATOR (an OnnxRefused)
    └── MachineError                    the request was sound, the work did not succeed
        ├── ExportFailed                EXPORT_FAILED
        ├── NotFinite                   NOT_FINITE
        ├── ParityFailed                PARITY_FAILED (carries the report)
        ├── AccuracyDropped             ACCURACY_DROPPED
        ├── RuntimeUnavailable          RUNTIME_UNAVAILABLE
        ├── TrainingDiverged            TRAINING_DIVERGED
        ├── TrainingStopped             TRAINING_STOPPED
        ├── OutOfMemory                 OUT_OF_MEMORY
        ├── (app.toolkit.tensorrt.errors: engines that were not built, or do not load)
        └── (app.toolkit.verification.errors: models that cannot be compared, or do not answer alike)

What only pruning can find wrong with a request is in app.toolkit.pruning.errors.

A defect of ours is none of these: it stays the Python exception that it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ToolkitError(Exception):
    """Base of every failure that the toolkit foresees.

    `message` says what happened, `expected` and `received` what was wanted and what came, `hint` the next thing to try.
    The last three are empty where they would say nothing.
    """

    code = "TOOLKIT_ERROR"

    def __init__(self, message: str, *, expected: str = "", received: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.received = received
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.message]
        for label, text in (("expected", self.expected), ("received", self.received), ("try", self.hint)):
            if text:
                parts.append(f"{label}: {text}")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, str]:
        """The five fields that a record keeps."""
        return {
            "code": self.code,
            "message": self.message,
            "expected": self.expected,
            "received": self.received,
            "hint": self.hint,
        }


class RequestError(ToolkitError):
    """The request cannot be met as it stands; the same request will fail again."""

    code = "INVALID_REQUEST"


class MachineError(ToolkitError):
    """The request was sound; the conversion, the proof or the machine failed it."""

    code = "MACHINE_ERROR"


class InvalidInputSize(RequestError):
    """Height or width does not fit the network."""

    code = "INVALID_INPUT_SIZE"


class ChannelsMismatch(RequestError):
    """The asked number of input channels is not what the first layer takes."""

    code = "CHANNELS_MISMATCH"


class UnsupportedOpset(RequestError):
    """The asked ONNX opset is outside of what the exporter writes."""

    code = "UNSUPPORTED_OPSET"


class UnsupportedTask(RequestError):
    """The model's task has no such operation (boxes of a classifier)."""

    code = "UNSUPPORTED_TASK"


class FeedMismatch(RequestError):
    """The arrays given to a runtime do not fit its inputs by name, dtype or shape."""

    code = "FEED_MISMATCH"


class InvalidQueries(RequestError):
    """A number of object queries was asked of a detector that has fewer, or none at all."""

    code = "INVALID_QUERIES"


class NoImages(RequestError):
    """A folder or list holds no image that could be used."""

    code = "NO_IMAGES"


class UnreadableImage(RequestError):
    """An image file exists but cannot be decoded."""

    code = "UNREADABLE_IMAGE"


class InvalidPreprocessing(RequestError):
    """A description of how images become a model's input has an unknown word or an impossible number."""

    code = "INVALID_PREPROCESSING"


class InvalidAnnotations(RequestError):
    """Labels, as COCO annotations or class folders, that do not fit the images or the model's classes."""

    code = "INVALID_ANNOTATIONS"


class InvalidTrainingSettings(RequestError):
    """A training was asked for with numbers that cannot train (no epoch, no batch)."""

    code = "INVALID_TRAINING_SETTINGS"


class UnknownLayer(RequestError):
    """A layer was named that the network does not have."""

    code = "UNKNOWN_LAYER"


class AlreadyQuantised(RequestError):
    """The network holds integers or fake quantisation: its weights cannot be ranked or cut as they are."""

    code = "ALREADY_QUANTISED"


class UnknownProfile(RequestError):
    """A device profile was named that the table does not have."""

    code = "UNKNOWN_PROFILE"


class PreflightFailed(RequestError):
    """What was seen before a build says that it would fail, or that its engine would be of no use."""

    code = "PREFLIGHT_FAILED"


class BuildElsewhere(RequestError):
    """An engine was asked for that only another machine can build; the hint has what to run there."""

    code = "BUILD_ELSEWHERE"


class InvalidBuild(RequestError):
    """An engine was asked for with options that contradict each other or cannot be."""

    code = "INVALID_BUILD"


class CalibrationMissing(RequestError):
    """INT8 was asked for with nothing that says what the ranges are: TensorRT would invent them and report success."""

    code = "CALIBRATION_MISSING"


class ReleaseUnsupported(RequestError):
    """This TensorRT is too old to be driven, or lacks what was asked of it."""

    code = "RELEASE_UNSUPPORTED"


class ModelFileError(RequestError):
    """A model file is not what the operation needs. `names` lists what in it is to blame, where that is told."""

    code = "MODEL_FILE_ERROR"

    def __init__(
        self, message: str, *, names: Sequence[str] = (), expected: str = "", received: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, expected=expected, received=received, hint=hint)
        self.names = tuple(names)


class FileMissing(ModelFileError):
    """There is no file at the path."""

    code = "FILE_MISSING"


class EmptyFile(ModelFileError):
    """The file has no bytes."""

    code = "EMPTY_FILE"


class CorruptFile(ModelFileError):
    """The file began as the right format and is damaged or cut."""

    code = "CORRUPT_FILE"


class NotAModel(ModelFileError):
    """The file is something else altogether."""

    code = "NOT_A_MODEL"


class LegacyCheckpoint(ModelFileError):
    """A bare pickle: torch's format before 1.6, or no torch file at all."""

    code = "LEGACY_CHECKPOINT"


class TorchScriptFile(ModelFileError):
    """A compiled TorchScript archive where a checkpoint was needed."""

    code = "TORCHSCRIPT_FILE"


class StateDictWithoutModel(ModelFileError):
    """Weights alone, without the network that they belong to."""

    code = "STATE_DICT_WITHOUT_MODEL"


class UnknownModelFamily(ModelFileError):
    """A network was found, of a family that no adapter knows."""

    code = "UNKNOWN_MODEL_FAMILY"


class UnknownBackbone(ModelFileError):
    """A checkpoint names a network that timm does not have."""

    code = "UNKNOWN_BACKBONE"


class InvalidCheckpoint(ModelFileError):
    """A checkpoint's own description of its model contradicts itself or cannot be."""

    code = "INVALID_CHECKPOINT"


class StateDictMismatch(ModelFileError):
    """The weights are not those of the network that the checkpoint names. `names` lists the tensors to blame."""

    code = "STATE_DICT_MISMATCH"


class UnsafeCheckpoint(ModelFileError):
    """Opening the file could run code that is not a known model's. `names` lists what it asked for."""

    code = "UNSAFE_CHECKPOINT"


class UntrustedEngine(ModelFileError):
    """An engine, which is code, that neither this service built nor the caller vouches for."""

    code = "UNTRUSTED_ENGINE"


class InvalidOnnx(ModelFileError):
    """The ONNX file or graph breaks the format's rules."""

    code = "INVALID_ONNX"


class OnnxRefused(ModelFileError):
    """TensorRT's parser refused the graph. `names` lists the nodes."""

    code = "ONNX_REFUSED"


class UnsupportedOperator(OnnxRefused):
    """TensorRT has neither an importer nor a plugin for an operator of the graph."""

    code = "UNSUPPORTED_OPERATOR"


class ExportFailed(MachineError):
    """The exporter gave up on the network."""

    code = "EXPORT_FAILED"


class NotFinite(MachineError):
    """NaN or infinity where a number was needed, usually an FP16 overflow."""

    code = "NOT_FINITE"


class ParityFailed(MachineError):
    """The converted model answers differently from the original. `report` is the whole measurement."""

    code = "PARITY_FAILED"

    def __init__(
        self, message: str, *, report: Mapping[str, Any], expected: str = "", received: str = "", hint: str = ""
    ) -> None:
        super().__init__(message, expected=expected, received=received, hint=hint)
        self.report = dict(report)


class AccuracyDropped(MachineError):
    """The optimised model lost more accuracy than was allowed."""

    code = "ACCURACY_DROPPED"


class RuntimeUnavailable(MachineError):
    """An inference runtime could not be opened or refused the model."""

    code = "RUNTIME_UNAVAILABLE"


class TrainingDiverged(MachineError):
    """The loss or the weights became NaN or infinite."""

    code = "TRAINING_DIVERGED"


class TrainingStopped(MachineError):
    """The caller's `should_stop` ended the training."""

    code = "TRAINING_STOPPED"


class OutOfMemory(MachineError):
    """The device's memory does not hold what was asked for."""

    code = "OUT_OF_MEMORY"
