"""The longer sentences of the genuine option parsers."""

from __future__ import annotations

NO_BATCH = (
    "The --batch and --maxBatch flags should not be used when the input model is ONNX or when dynamic shapes are "
    "provided. Please use --optShapes and --shapes to set input shapes instead."
)
SHAPES_8_2 = "Must specify only --optShapes or all of --minShapes, --optShapes, --maxShapes"
STANDALONE = (
    "I/O formats for safe DLA capability are restricted to fp16/int8:dla_linear, fp16/int8:hwc4, fp16:chw16 or "
    "int8:chw32"
)
CONSTRAINTS = (
    'When --precisionConstraints flag is set to "obey" or "prefer", please add --layerPrecision/--layerOutputTypes '
    "flags to set layer-wise precisions and output types."
)
NO_GRAPH_ON_DLA = (
    "CUDA graphs and DLA offloading are not simultaneously supported. The CUDA graph option has been disabled "
    "(alternatively, you may run without the `--useDLACore` option)."
)
STOD = "stod conversion failure: failed to parse --memPoolSize. Please double check your input string."
SPARSITY_FORCE = (
    "--sparsity=force has been deprecated. Please use <polygraphy surgeon prune> to rewrite the weights to a sparsity "
    "pattern and then run with --sparsity=enable"
)
STRONGLY_TYPED = (
    "Invalid usage, setting {0} mode is not allowed if graph is strongly typed. Disabling BuilderFlag::{1}."
)
ADJUST_FOR_DLA = (
    "--adjustForDLA was set, but no DLA cores are available. The parser's behavior will be modified, but the network "
    "will run on GPU."
)

_EXPLICIT_BATCH = (
    "Explicit batch dim is automatically enabled if input model is ONNX or if dynamic shapes are provided when the "
    "engine is built."
)
_HEURISTIC = (
    "--heuristic flag has been deprecated, use --builderOptimizationLevel=<N> flag instead (N <= 2 enables heuristic)."
)
_SEPARATE = (
    "--separateProfileRun is deprecated. Separate profile run is now always enabled. This flag will be removed in a "
    "future release."
)
_CUDA_GRAPH = (
    "--useCudaGraph is deprecated. CUDA graph is now enabled by default. Use --noCudaGraph to disable CUDA graph."
)
_SPIN_WAIT = "--useSpinWait is deprecated. Spin wait is now enabled by default. Use --noSpinWait to disable spin wait."
_TRANSFERS = (
    "--noDataTransfers is deprecated. Data transfers are now disabled by default. Use --includeDataTransfers to "
    "re-enable data transfers."
)

DEPRECATED: tuple[tuple[str, tuple[int, ...], str], ...] = (
    ("workspace", (8, 5), "--workspace flag has been deprecated by --memPoolSize flag."),
    ("buildOnly", (8, 6), "--buildOnly flag has been deprecated by --skipInference flag."),
    ("explicitBatch", (8, 2), "--explicitBatch flag has been deprecated and has no effect!"),
    ("explicitBatch", (8, 2), _EXPLICIT_BATCH),
    ("nvtxMode", (8, 2), "--nvtxMode flag has been deprecated by --profilingVerbosity flag."),
    ("heuristic", (8, 6), _HEURISTIC),
    ("streams", (8, 6), "--streams flag has been deprecated, use --infStreams flag instead."),
    ("directIO", (10, 16), "--directIO flag has been deprecated"),
    ("separateProfileRun", (11, 0), _SEPARATE),
    ("useCudaGraph", (11, 0), _CUDA_GRAPH),
    ("useSpinWait", (11, 0), _SPIN_WAIT),
    ("noDataTransfers", (11, 0), _TRANSFERS),
)
"""Option, the first release that warns, the warning."""
