"""A graph that answers as before and that plain INT8 breaks: one channel is carried 200 times as large."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, helper, numpy_helper


def with_outlier(model: ModelProto, factor: float = 200.0, *, skip: int = 2) -> tuple[ModelProto, str]:
    """A copy in which a channel is multiplied before a convolution, whose weights divide it again; that node's name.

    One scale a tensor then serves a range `factor` times too wide, and the other channels fall to a step or two.
    The first `skip` convolutions are left alone.
    """
    changed = ModelProto.FromString(model.SerializeToString())
    graph = changed.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    node = [one for one in graph.node if one.op_type == "Conv" and one.input[1] in weights][skip]
    weight = numpy_helper.to_array(weights[node.input[1]]).copy()
    scale = np.ones((1, weight.shape[1], 1, 1), np.float32)
    scale[0, 0] = factor
    weight[:, 0] /= np.float32(factor)
    weights[node.input[1]].CopyFrom(numpy_helper.from_array(weight, node.input[1]))
    graph.initializer.append(numpy_helper.from_array(scale, "outlier"))
    carried = helper.make_node("Mul", [node.input[0], "outlier"], [f"{node.name}_carried"], f"{node.name}_outlier")
    node.input[0] = carried.output[0]
    nodes = list(graph.node)
    nodes.insert(nodes.index(node), carried)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed, node.name
