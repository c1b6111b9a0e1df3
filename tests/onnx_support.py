"""A small ONNX file for tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from toy import FEATURE


def make_onnx(
    path, *, inputs=1, kind=TensorProto.UINT8, shape=("b", "h", "w", 3), axes=(1, 2), keepdims=0
):
    """A file that embeds an image by its mean colour, turned into FEATURE dimensions; gives the matrix too."""
    matrix = np.random.default_rng(0).standard_normal((3, FEATURE)).astype(np.float32)
    names = [f"images{i}" for i in range(inputs)]
    nodes = [
        helper.make_node("Cast", [names[0]], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["mean"], axes=axes, keepdims=keepdims),
        helper.make_node("MatMul", ["mean", "matrix"], ["descriptor"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mean_colour",
        [helper.make_tensor_value_info(name, kind, shape) for name in names],
        [helper.make_tensor_value_info("descriptor", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    opset = helper.make_opsetid("", 13)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return matrix
