"""Channels that leave: what is left computes, counts, and keeps to its options."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import C2f
from ultralytics.utils.torch_utils import get_num_params

from app.toolkit import errors
from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.images import DEFAULT_IMAGES, read_image, tensor_from_image
from app.toolkit.macs import macs_by_layer
from app.toolkit.pruning.errors import InvalidPruning, StructureNotPrunable, TargetUnreachable
from app.toolkit.pruning.groups import ChannelGraph
from app.toolkit.pruning.importance import scorer
from app.toolkit.pruning.names import matches
from app.toolkit.pruning.removal import REBUILD_WARNING, RemovalOptions, RemovalReport, remove_channels
from app.toolkit.pruning.split import SplitBlock, merge_blocks, split_blocks
from app.toolkit.pruning.widths import CostModel, plan_widths

MakeNetwork = Callable[[str], nn.Module]
SIZE = (320, 320)
BOTTLENECKS = ("model.*.m.*.cv1",)
TASKS: dict[str, Any] = {
    "cls": tasks.ClassificationModel,
    "seg": tasks.SegmentationModel,
    "pose": tasks.PoseModel,
    "obb": tasks.OBBModel,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny inputs: threads that wait for each other would take most of the time on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def make_network(pills: Path) -> MakeNetwork:
    """Networks by name, made once each: "pills", or an untrained one with normalisations that are not all alike."""
    made: dict[str, nn.Module] = {}

    def make(name: str) -> nn.Module:
        if name == "pills":
            made.setdefault(name, model_from_checkpoint(open_checkpoint(pills)))
        elif name not in made:
            torch.manual_seed(0)
            kind = TASKS.get(name.rpartition("-")[2], tasks.DetectionModel)
            network: nn.Module = kind(f"{name}.yaml", verbose=False)
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, 0, 0.1)
                    nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            made[name] = network.eval()
        return made[name]

    return make


def _remove(network: nn.Module, **options: Any) -> tuple[nn.Module, RemovalReport]:
    return remove_channels(network, RemovalOptions(**options), input_size=SIZE)


def _answer(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        answer = network(image)
    while isinstance(answer, tuple):  # a segmenter's first answer is a pair
        answer = answer[0]
    assert isinstance(answer, torch.Tensor)
    return answer


def _made_widths(network: nn.Module) -> dict[str, int]:
    return {name: one.out_channels for name, one in network.named_modules() if isinstance(one, nn.Conv2d)}


@pytest.mark.parametrize("name", ["pills", "yolo11n"])
def test_splitting_and_merging_answer_exactly_as_before(make_network: MakeNetwork, name: str) -> None:
    network = copy.deepcopy(make_network(name)).float().eval()
    image = torch.rand(1, 3, 64, 96)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    expected = _answer(network, image)
    split_blocks(network)
    assert sum(isinstance(one, SplitBlock) for one in network.modules()) == 8
    assert torch.allclose(_answer(network, image), expected, atol=1e-4, rtol=1e-5)
    merge_blocks(network)
    assert not any(isinstance(one, SplitBlock) for one in network.modules())
    assert torch.equal(_answer(network, image), expected)
    after = network.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("name", ["pills", "yolo11n"])
def test_what_is_left_has_widths_of_eight_and_answers_in_the_same_shape(
    make_network: MakeNetwork, name: str, ratio: float
) -> None:
    network = make_network(name)
    pruned, report = _remove(network, ratio=ratio)
    image = torch.rand(1, 3, 64, 96)
    assert _answer(pruned, image).shape == _answer(copy.deepcopy(network).float().eval(), image).shape
    assert torch.isfinite(_answer(pruned, image)).all()
    assert all(layer.after % 8 == 0 and layer.after >= 8 for layer in report.layers if layer.after != layer.before)
    assert report.after.macs < report.before.macs and report.after.params < report.before.params
    assert not pruned.training and not any(one.training for one in pruned.modules())
    head = pruned.model[-1]  # type: ignore[index]
    assert torch.equal(head.dfl.conv.weight.flatten(), torch.arange(16.0))  # type: ignore[union-attr]
    for block in pruned.modules():
        if isinstance(block, C2f):
            assert block.cv1.conv.out_channels == 2 * block.c
    for old, new in zip(network.model, pruned.model, strict=True):  # type: ignore[arg-type]
        assert (old.i, old.f, old.type) == (new.i, new.f, new.type)
        assert new.np == sum(p.numel() for p in new.parameters())


@pytest.mark.parametrize("name", ["pills", "yolo11n"])
def test_counts_are_ultralytics_and_torch_prunings(make_network: MakeNetwork, name: str) -> None:
    network = make_network(name)
    pruned, report = remove_channels(network, RemovalOptions(ratio=0.3))
    assert report.after.params == get_num_params(pruned)
    assert report.before.params == get_num_params(network)
    assert report.after.macs == sum(macs_by_layer(pruned, torch.zeros(1, 3, 640, 640)).values())
    _, params = tp.utils.count_ops_and_params(pruned, torch.zeros(1, 3, 64, 64))
    assert params == report.after.params


def test_the_channels_that_stay_are_the_channels_that_were(make_network: MakeNetwork) -> None:
    """Channels whose removal cannot matter: weights that are zero on both ends leave, and the answer stays."""
    network = copy.deepcopy(make_network("pills")).float().eval()
    block = network.model[4].m[0]  # type: ignore[index, union-attr]
    gone = torch.arange(0, 32, 4)
    with torch.no_grad():
        for tensor in (block.cv1.conv.weight, block.cv1.bn.weight, block.cv1.bn.bias):
            tensor[gone] = 0
        block.cv2.conv.weight[:, gone] = 0
    pruned, report = _remove(network, ratio=0.25, include=("model.4.m.0.cv1",))
    assert [(one.name, one.before, one.after) for one in report.layers] == [
        ("model.4.m.0.cv1.conv", 32, 24),
        ("model.4.m.0.cv2.conv", 32, 32),
    ]
    image = tensor_from_image(read_image(DEFAULT_IMAGES[0]), SIZE, 3)[0]
    before, after = (_answer(one, torch.from_numpy(image)) for one in (network, pruned))
    assert torch.allclose(before, after, atol=1e-2, rtol=1e-4)
    assert float((before - after)[:, 4:].abs().max()) < 1e-5
    kept = [index for index in range(32) if index not in gone.tolist()]
    inner = pruned.model[4].m[0].cv1.bn  # type: ignore[index, union-attr]
    assert torch.equal(inner.running_mean, block.cv1.bn.running_mean[kept])
    assert torch.equal(inner.running_var, block.cv1.bn.running_var[kept])


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("name", ["pills", "yolo11n"])
def test_costs_are_foretold_exactly(make_network: MakeNetwork, name: str, scope: Any) -> None:
    network = copy.deepcopy(make_network(name)).float().eval().requires_grad_(True)
    image = torch.zeros(1, 3, 64, 64)
    split_blocks(network)
    graph = ChannelGraph(network, image)
    units, _ = graph.units(scorer(network, "l1", ()), include=(), exclude=(), head=True)
    costs = CostModel(network, macs_by_layer(network, image))
    plan = plan_widths(units, 0.37, scope, 1)
    foretold = costs.at(units, plan.widths)
    for unit, width in zip(units, plan.widths, strict=True):
        if width < unit.width:
            graph.remove(unit, width)
    assert foretold.params == get_num_params(network)
    assert foretold.macs == sum(macs_by_layer(network, image).values())


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("measure", ["macs", "params"])
def test_a_target_is_met_and_the_next_step_would_not_be(make_network: MakeNetwork, measure: str, scope: Any) -> None:
    network = make_network("pills")
    _, report = _remove(network, target={measure: 0.7}, scope=scope)
    left = report.as_dict()[f"{measure}_left"]
    assert 0.6 < left <= 0.7
    _, less = _remove(network, ratio=report.ratio - 0.001, scope=scope)
    assert less.as_dict()[f"{measure}_left"] > 0.7


def test_with_round_to_1_a_target_is_met_closely(make_network: MakeNetwork) -> None:
    _, report = _remove(make_network("pills"), target={"macs": 0.7}, round_to=1)
    assert report.as_dict()["macs_left"] == pytest.approx(0.7, abs=0.01)
    assert any(layer.after % 8 for layer in report.layers)


def test_an_unreachable_target_names_the_least(make_network: MakeNetwork) -> None:
    with pytest.raises(TargetUnreachable) as caught:
        _remove(make_network("pills"), target={"macs": 0.01})
    least = float(caught.value.expected.split("at least ")[1].split(",")[0])
    assert 0.1 < least < 0.4
    _, report = _remove(make_network("pills"), target={"macs": least})
    assert report.as_dict()["macs_left"] <= least


def test_a_ratio_near_1_leaves_every_layer_its_least_width_and_says_so(make_network: MakeNetwork) -> None:
    pruned, report = _remove(make_network("pills"), ratio=0.99)
    assert min(_made_widths(pruned).values()) >= 1
    assert all(layer.after >= 8 for layer in report.layers)
    assert report.floored and any("instead of vanishing" in warning for warning in report.warnings)
    assert _answer(pruned, torch.rand(1, 3, 64, 64)).shape == (1, 16, 84)


def test_a_ratio_below_half_a_step_removes_nothing_and_says_so(make_network: MakeNetwork) -> None:
    _, report = _remove(make_network("pills"), ratio=0.01)
    assert report.layers == () and report.before == report.after
    assert len(report.warnings) == 1 and "nothing was removed" in report.warnings[0]


def test_global_scope_keeps_halves_tied_and_a_tenth_of_each_layer(make_network: MakeNetwork) -> None:
    network = make_network("pills")
    pruned, report = _remove(network, ratio=0.5, scope="global", round_to=1)
    shares = {round(layer.after / layer.before, 2) for layer in report.layers}
    assert len(shares) > 5  # not the same of every layer
    assert all(layer.after >= 0.1 * layer.before for layer in report.layers)
    _, local = _remove(network, ratio=0.5, round_to=1)
    assert local.after.macs != report.after.macs
    assert _answer(pruned, torch.rand(1, 3, 64, 64)).shape == (1, 16, 84)


def test_the_head_stays_unless_it_is_asked_for(make_network: MakeNetwork) -> None:
    for name, head in (("pills", "model.22."), ("yolo11n", "model.23.")):
        network = make_network(name)
        before = _made_widths(network)
        pruned, _ = _remove(network, ratio=0.5)
        after = _made_widths(pruned)
        made = {n for n, w in after.items() if n.startswith(head) and w != before[n]}
        assert all(isinstance(pruned.get_submodule(n), nn.Conv2d) for n in made)
        assert all(pruned.get_submodule(n).groups > 1 for n in made)  # type: ignore[operator]  # depthwise ones follow
        more, report = _remove(network, ratio=0.5, head=True)
        assert sum(p.numel() for p in more.parameters()) < sum(p.numel() for p in pruned.parameters())
        answers = [one.name for one in report.layers if one.name.startswith(head) and one.name.endswith(".2")]
        assert answers and all(one.before == one.after for one in report.layers if one.name in answers)


def test_excluded_layers_keep_what_they_make(make_network: MakeNetwork) -> None:
    network = make_network("pills")
    exclude = ("model.0", "model.9.cv1.conv", "model.*.m.*")
    pruned, report = _remove(network, ratio=0.5, exclude=exclude)
    before, after = _made_widths(network), _made_widths(pruned)
    kept = [name for name in before if matches(name, exclude)]
    assert len(kept) > 15
    assert all(before[name] == after[name] for name in kept)
    assert set(kept) <= set(report.left_alone)


def test_only_included_channels_leave(make_network: MakeNetwork) -> None:
    network = make_network("yolov8n")
    pruned, report = _remove(network, ratio=0.15, include=BOTTLENECKS, round_to=1)
    changed = {layer.name for layer in report.layers}
    assert len(changed) == 20  # both convolutions of ten bottlenecks, as S2 counts them
    assert all(".m." in name for name in changed)
    assert _answer(pruned, torch.rand(1, 3, 64, 64)).shape == (1, 84, 84)


def test_seven_classes_have_s2s_parameters(make_network: MakeNetwork) -> None:
    network = tasks.DetectionModel("yolov8n.yaml", nc=7, verbose=False)
    assert get_num_params(network) == 3_012_213
    _, report = _remove(network, target={"params": 2_870_413 / 3_012_213}, include=BOTTLENECKS, round_to=1)
    assert report.before.params == 3_012_213
    assert report.after.params == pytest.approx(2_870_413, abs=5_000)


@pytest.mark.parametrize("name", ["yolov8n-cls", "yolov8n-seg", "yolo11n-pose", "yolov8n-obb"])
def test_other_heads_survive(make_network: MakeNetwork, name: str) -> None:
    network = make_network(name)
    image = torch.rand(1, 3, 64, 64)
    for head in (False, True):
        pruned, report = remove_channels(network, RemovalOptions(ratio=0.3, head=head), input_size=(64, 64))
        assert _answer(pruned, image).shape == _answer(network, image).shape
        assert report.as_dict()["macs_left"] < 0.8


def test_a_pruned_network_is_pruned_again(make_network: MakeNetwork) -> None:
    once, first = _remove(make_network("pills"), ratio=0.3, round_to=1)
    twice, second = _remove(once, ratio=0.3, round_to=8)
    assert second.before == first.after and second.after.params < 0.75 * first.after.params
    assert all(layer.after % 8 == 0 for layer in second.layers if layer.after < layer.before)
    assert _answer(twice, torch.rand(1, 3, 64, 64)).shape == (1, 16, 84)


def test_a_fused_network_is_pruned_too(make_network: MakeNetwork) -> None:
    fused = copy.deepcopy(make_network("pills")).float().eval().fuse(verbose=False)  # type: ignore[operator]
    pruned, report = _remove(fused, ratio=0.3)
    assert report.as_dict()["params_left"] < 0.7
    assert _answer(pruned, torch.rand(1, 3, 64, 64)).shape == (1, 16, 84)


def test_the_given_network_is_not_changed_and_the_choice_is_the_same_each_time(make_network: MakeNetwork) -> None:
    network = make_network("pills")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    one, _ = _remove(network, ratio=0.3)
    two, _ = _remove(network, ratio=0.3)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_importance_from_images_keeps_what_magnitude_loses(make_network: MakeNetwork) -> None:
    network = make_network("pills")
    images = [torch.from_numpy(tensor_from_image(read_image(path), SIZE, 3)[0]) for path in DEFAULT_IMAGES]
    reference = _answer(copy.deepcopy(network).float().eval(), images[0])
    moved = {}
    for kind in ("l2", "taylor"):
        options = RemovalOptions(ratio=0.05, importance=kind, round_to=1)
        pruned, _ = remove_channels(network, options, input_size=SIZE, images=images)
        moved[kind] = float((_answer(pruned, images[0]) - reference)[:, :4].abs().mean())
    assert moved["taylor"] < 0.7 * moved["l2"]


def test_importance_from_images_needs_images_and_normalisations(make_network: MakeNetwork) -> None:
    with pytest.raises(errors.NoImages, match="taylor"):
        _remove(make_network("pills"), ratio=0.3, importance="taylor")
    fused = copy.deepcopy(make_network("pills")).float().eval().fuse(verbose=False)  # type: ignore[operator]
    with pytest.raises(StructureNotPrunable, match="normalisations"):
        remove_channels(fused, RemovalOptions(ratio=0.3, importance="taylor"), images=[torch.rand(1, 3, 64, 64)])


def test_the_report_warns_of_ultralytics_own_train(make_network: MakeNetwork) -> None:
    _, report = _remove(make_network("pills"), ratio=0.3)
    assert REBUILD_WARNING in report.warnings
    assert report.as_dict()["params_before"] == 3_013_188


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "either a ratio or a target"),
        ({"ratio": 0.3, "target": {"macs": 0.5}}, "either a ratio or a target"),
        ({"ratio": 0.0}, "ratio"),
        ({"ratio": 1.0}, "ratio"),
        ({"ratio": -1}, "ratio"),
        ({"target": {"macs": 1.0}}, "target"),
        ({"target": {"latency": 0.5}}, "target"),
        ({"target": {"macs": 0.5, "params": 0.5}}, "target"),
        ({"target": {}}, "target"),
        ({"ratio": 0.3, "scope": "block"}, "scope"),
        ({"ratio": 0.3, "importance": "luck"}, "importance"),
        ({"ratio": 0.3, "round_to": 0}, "round_to"),
    ],
)
def test_options_that_cannot_be_are_refused(make_network: MakeNetwork, options: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidPruning, match=part):
        _remove(make_network("pills"), **options)


def test_unknown_and_empty_selections_are_refused(make_network: MakeNetwork) -> None:
    with pytest.raises(errors.UnknownLayer) as caught:
        _remove(make_network("pills"), ratio=0.3, exclude=("model.99",))
    assert "model.9" in caught.value.hint
    with pytest.raises(StructureNotPrunable, match="no channel"):
        _remove(make_network("pills"), ratio=0.3, include=("model.22",))


def test_other_networks_are_refused(make_network: MakeNetwork) -> None:
    with pytest.raises(errors.UnknownModelFamily):
        _remove(nn.Sequential(nn.Conv2d(3, 8, 3)), ratio=0.3)
    quantised = copy.deepcopy(make_network("pills"))
    quantised.model[0].conv.weight = nn.Parameter(torch.ones(16, 3, 3, 3, dtype=torch.int8), requires_grad=False)  # type: ignore[index, union-attr]
    with pytest.raises(errors.AlreadyQuantised):
        _remove(quantised, ratio=0.3)
    with pytest.raises(StructureNotPrunable) as caught:
        _remove(tasks.DetectionModel("yolo12n.yaml", verbose=False), ratio=0.3)
    assert "AAttn" in caught.value.received
