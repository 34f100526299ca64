"""The search for the fewest nodes that must stay in floating point, on a made-up loss."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest

from app.toolkit.quantization.proof import Accuracy
from app.toolkit.quantization.repair import Repair, Sensitivity, repair

NODES = [f"n{index}" for index in range(40)]
RANKING = tuple(Sensitivity(name, 1.0 / (index + 1)) for index, name in enumerate(NODES))


def _repaired(needed: int, ranking: Sequence[Sensitivity] = RANKING) -> Repair:
    """A model that is well as soon as the first `needed` of the ranking are kept."""

    def quantise(kept: Sequence[str]) -> bytes:
        assert list(kept) == [one.node for one in ranking[: len(kept)]]
        return str(len(kept)).encode()

    def score(graph: bytes) -> Accuracy:
        return Accuracy("map50_95", 0.9, 0.9 if int(graph) >= needed else 0.5 + int(graph) / 1000, 200)

    return repair(ranking, quantise, score, 0.005)


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 17, 39])
def test_the_fewest_nodes_are_found_in_few_evaluations(needed: int) -> None:
    found = _repaired(needed)
    assert (found.fits, found.kept) == (True, tuple(NODES[:needed]))
    assert found.evaluations <= 2 * math.ceil(math.log2(len(NODES)))
    assert found.graph == str(needed).encode()


def test_where_nothing_helps_the_least_loss_is_told() -> None:
    found = _repaired(1000)
    assert not found.fits
    assert len(found.kept) == len(NODES) - 1, "one node stays quantised, or it would be another kind of file"


def test_a_graph_of_one_node_cannot_be_repaired() -> None:
    found = _repaired(1, RANKING[:1])
    assert (found.fits, found.kept, found.evaluations) == (False, (), 1)


def test_the_report_is_json_even_where_an_answer_was_not_finite() -> None:
    found = _repaired(1, (Sensitivity("broken", math.inf), *RANKING))
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["ranking"][0] == {"node": "broken", "error": None}
    assert document["kept"] == ["broken"]
