"""Masks: how many weights they zero, which, and what they refuse."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from ultralytics.nn import tasks

from app.toolkit import errors
from app.toolkit.checkpoint import model_from_checkpoint, open_checkpoint
from app.toolkit.pruning.errors import InvalidPruning, StructureNotPrunable
from app.toolkit.pruning.masks import UnstructuredMethod, mask_structured, mask_unstructured


@pytest.fixture(scope="module")
def network(pills: Path) -> nn.Module:
    return model_from_checkpoint(open_checkpoint(pills)).float()


@pytest.fixture(scope="module")
def classifier_network() -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = tasks.ClassificationModel("yolov8n-cls.yaml", nc=10, verbose=False)
    return network.eval()


def _convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: one for name, one in network.named_modules() if isinstance(one, nn.Conv2d)}


def _zeros(network: nn.Module) -> int:
    return sum(int((one.weight == 0).sum()) for name, one in _convolutions(network).items() if ".dfl." not in name)


@pytest.mark.parametrize("method", ["l1_unstructured", "random_unstructured"])
def test_a_fifth_of_the_masked_weights_is_zero_and_the_rest_is_as_it_was(
    network: nn.Module, method: UnstructuredMethod
) -> None:
    masked, report = mask_unstructured(network, 0.2, method)
    before, after = _convolutions(network), _convolutions(masked)
    weights = sum(one.weight.numel() for name, one in after.items() if ".dfl." not in name)
    assert report.weights == weights
    assert report.zeros_after == _zeros(masked)
    assert report.zeros_after / weights == pytest.approx(0.2, abs=1e-5)
    for name, layer in after.items():
        kept = layer.weight != 0
        assert torch.equal(layer.weight[kept], before[name].weight[kept])
    assert report.as_dict()["zeros_pct"] == pytest.approx(20, abs=1e-3)


def test_the_zeros_are_those_that_torch_prune_chooses(network: nn.Module) -> None:
    masked, report = mask_unstructured(network, 0.35)
    expected = copy.deepcopy(network.get_submodule("model.4.cv1.conv"))
    prune.l1_unstructured(expected, "weight", 0.35)  # type: ignore[no-untyped-call]
    assert torch.equal(masked.get_submodule("model.4.cv1.conv").weight, expected.weight)  # type: ignore[arg-type]
    structured, _ = mask_structured(network, 0.35, 1, 1)
    expected = copy.deepcopy(network.get_submodule("model.4.cv1.conv"))
    prune.ln_structured(expected, "weight", 0.35, n=1, dim=1)  # type: ignore[no-untyped-call]
    assert torch.equal(structured.get_submodule("model.4.cv1.conv").weight, expected.weight)  # type: ignore[arg-type]
    one = next(layer for layer in report.layers if layer.name == "model.4.cv1.conv")
    assert one.shape == (64, 64, 1, 1) and one.zeros_after == round(0.35 * 4096)


def test_the_mask_is_permanent_and_the_given_network_untouched(network: nn.Module) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    masked, _ = mask_structured(network, 0.5)
    assert set(masked.state_dict()) == set(before)  # no weight_orig, no weight_mask
    assert not any(module._forward_pre_hooks for module in masked.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert isinstance(masked.get_submodule("model.0.conv").weight, nn.Parameter)


def test_the_fixed_dfl_convolution_keeps_its_numbers(network: nn.Module) -> None:
    for masked, report in (mask_unstructured(network, 0.9), mask_structured(network, 0.9)):
        dfl = masked.get_submodule("model.22.dfl.conv").weight
        assert torch.equal(dfl.flatten(), torch.arange(16.0))  # type: ignore[operator]
        assert report.left_alone == ("model.22.dfl.conv",)


def test_random_masks_are_the_seeds_and_leave_torchs_generator_alone(network: nn.Module) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, _ = mask_unstructured(network, 0.3, "random_unstructured", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, report = mask_unstructured(network, 0.3, "random_unstructured", seed=1)
    other, _ = mask_unstructured(network, 0.3, "random_unstructured", seed=2)
    name = "model.4.cv1.conv"
    weights = [one.get_submodule(name).weight for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])  # type: ignore[arg-type]
    assert not torch.equal(weights[0], weights[2])  # type: ignore[arg-type]
    assert report.as_dict()["seed"] == 1


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("n", [1, 2])
def test_whole_slices_are_zero(network: nn.Module, n: int, dim: int) -> None:
    masked, _ = mask_structured(network, 0.25, n, dim)
    weight = masked.get_submodule("model.4.cv1.conv").weight
    empty = (weight.transpose(0, dim).flatten(1) == 0).all(1)  # type: ignore[operator]
    assert int(empty.sum()) == 16  # of 64


def test_amount_0_masks_nothing_and_says_so(network: nn.Module) -> None:
    for _, report in (mask_unstructured(network, 0.0), mask_structured(network, 0)):
        assert report.zeros_after == report.zeros_before
        assert any("nothing" in warning for warning in report.warnings)


def test_amount_1_zeroes_everything_and_says_so(network: nn.Module) -> None:
    for masked, report in (mask_unstructured(network, 1), mask_structured(network, 1.0)):
        assert report.zeros_after == report.weights == _zeros(masked)
        assert any("no longer answers" in warning for warning in report.warnings)


def test_masking_again_counts_what_was_zero_before(network: nn.Module) -> None:
    once, first = mask_unstructured(network, 0.3)
    twice, second = mask_unstructured(once, 0.3)
    assert second.zeros_before == first.zeros_after == second.zeros_after
    assert any("zero before" in warning for warning in second.warnings)
    assert torch.equal(once.get_submodule("model.0.conv").weight, twice.get_submodule("model.0.conv").weight)  # type: ignore[arg-type]


def test_excluded_layers_stay_as_they_are(network: nn.Module) -> None:
    masked, report = mask_unstructured(network, 0.5, exclude=["model.22", "model.*.cv1.conv", "model.0.conv"])
    names = {layer.name for layer in report.layers}
    assert not any(name.startswith("model.22") or name.endswith("cv1.conv") for name in names)
    assert "model.2.cv2.conv" in names and "model.0.conv" not in names
    before = network.get_submodule("model.22.cv2.0.0.conv").weight
    assert torch.equal(masked.get_submodule("model.22.cv2.0.0.conv").weight, before)  # type: ignore[arg-type]


def test_an_unknown_layer_is_answered_with_the_nearest(network: nn.Module) -> None:
    with pytest.raises(errors.UnknownLayer) as caught:
        mask_unstructured(network, exclude=["model.22.cv2.0.0.convv"])
    assert "model.22.cv2.0.0.conv" in caught.value.hint


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan"), True])
def test_an_amount_outside_of_0_to_1_is_refused(network: nn.Module, amount: float) -> None:
    for call in (mask_unstructured, mask_structured):
        with pytest.raises(InvalidPruning, match="amount"):
            call(network, amount)


@pytest.mark.parametrize("n", [0, -1, True])
def test_a_norm_below_1_is_refused(network: nn.Module, n: int) -> None:
    with pytest.raises(InvalidPruning, match="norm") as caught:
        mask_structured(network, n=n)
    assert caught.value.received == f"n = {n}"


@pytest.mark.parametrize("dim", [7, 4, -1])
def test_a_dim_that_no_convolution_has_is_refused(network: nn.Module, dim: int) -> None:
    with pytest.raises(InvalidPruning) as caught:
        mask_structured(network, dim=dim)
    assert "0 to 3" in caught.value.expected


def test_a_linear_layer_has_no_kernel_dims(classifier_network: nn.Module) -> None:
    with pytest.raises(InvalidPruning) as caught:
        mask_structured(classifier_network, dim=2)
    assert "0 to 1" in caught.value.expected and "model.9.linear" in caught.value.hint
    _, report = mask_structured(classifier_network, dim=2, exclude=["model.9.linear"])
    assert report.left_alone == ("model.9.linear",)


def test_a_classifiers_linear_layer_is_masked_too(classifier_network: nn.Module) -> None:
    masked, report = mask_unstructured(classifier_network, 0.2)
    linear = next(layer for layer in report.layers if layer.name == "model.9.linear")
    assert linear.zeros_after == round(0.2 * 1280 * 10)
    assert masked(torch.zeros(1, 3, 64, 64))[0].shape == (1, 10)


def test_layers_with_a_single_slice_are_named_when_they_lose_all(network: nn.Module) -> None:
    one = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
    _, report = mask_structured(one, 0.6, 2, 1)  # torch rounds: 0.5 of one slice is none
    assert any("lost all their weights" in warning and warning.endswith(": 0") for warning in report.warnings)


def test_an_unknown_method_is_refused(network: nn.Module) -> None:
    with pytest.raises(InvalidPruning, match="way of masking"):
        mask_unstructured(network, 0.2, "magic")  # type: ignore[arg-type]


def test_nothing_left_to_mask_is_an_error(network: nn.Module) -> None:
    with pytest.raises(StructureNotPrunable, match="nothing is left"):
        mask_unstructured(network, exclude=["model"])
    with pytest.raises(StructureNotPrunable, match="nothing is left"):
        mask_unstructured(nn.Sequential(nn.ReLU()))


def test_a_quantised_network_is_refused(network: nn.Module) -> None:
    from torch.ao.quantization import FakeQuantize

    faked = copy.deepcopy(network)
    faked.model[0].act = FakeQuantize()  # type: ignore[index, union-attr, no-untyped-call]
    with pytest.raises(errors.AlreadyQuantised) as caught:
        mask_unstructured(faked)
    assert "FakeQuantize" in caught.value.received
    whole = copy.deepcopy(network)
    whole.model[0].conv.weight = nn.Parameter(torch.ones(16, 3, 3, 3, dtype=torch.int8), requires_grad=False)  # type: ignore[index, union-attr]
    with pytest.raises(errors.AlreadyQuantised):
        mask_structured(whole)
