"""Layer tables: every malformed row is an error that names it, and the built network does what its row says."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from models import convolution, digits, layers, mnist, plane, svhn
from models.layers import Layer, Net, describe, main
from models.noise import Noise
from models.tables import Amendment, Row, Table, TableError, amend

ROOT = Path(__file__).resolve().parent.parent
HEADER = "Name Input Channels Width Stride Dropout BatchNorm Activation"
X = "x - 2 - - - - -"
MNIST = {name: getattr(mnist, name) for name in ("ENCODER", "PRIOR", "DECODER", "DISCRIMINATOR")}
ALL = {
    f"{module.__name__}.{name}": table
    for module in (importlib.import_module(item.name) for item in pkgutil.iter_modules(models.__path__, "models."))
    for name, table in vars(module).items()
    if isinstance(table, Table)
}


def _table(*rows: str, header: str = HEADER, size: int = 1, transposed: bool = False) -> Table:
    """A table from rows with single spaces between cells; `_` stands for a space inside a cell."""
    text = "\n".join("  ".join(cell.replace("_", " ") for cell in row.split(" ")) for row in (header, *rows))
    return Table("Test", text, {"x": size}, transposed)


def _net(*rows: str, k: int = 3, size: int = 1, transposed: bool = False) -> Net:
    return Net(_table(*rows, size=size, transposed=transposed), k, Noise.seeded(1), std=0.5)


def _weight(net: Net, name: str) -> nn.Parameter:
    weight = _layer(net, name).weight
    assert weight is not None
    return weight


def _bias(net: Net, name: str) -> nn.Parameter:
    bias = _layer(net, name).bias
    assert bias is not None
    return bias


def _layer(net: Net, name: str) -> Layer:
    layer = net.layers[name]
    assert isinstance(layer, Layer)
    return layer


# malformed tables


@pytest.mark.parametrize(
    "row",
    [
        "a x 4 1 1 - -",
        "a x 4 1 1 - - - -",
        "a! x 4 1 1 - - -",
        "x x 4 1 1 - - -",
        "zeros x 4 1 1 - - -",
        "a missing 4 1 1 - - -",
        "a a 4 1 1 - - -",
        "a x_+_w_|_x 4 1 1 - - -",
        "a x+w 4 1 1 - - -",
        "a x 0 1 1 - - -",
        "a x -4 1 1 - - -",
        "a x m 1 1 - - -",
        "a x 4 0 1 - - -",
        "a x 4 wide 1 - - -",
        "a x 4 1.5 1 - - -",
        "a x 4 2_same 1 - - -",
        "a x 4 4_same 1 - - -",
        "a x 4 same 1 - - -",
        "a x 2 -_same - - - -",
        "a x 4 3_valid 1 - - -",
        "a x 4 1 0 - - -",
        "a x 4 1 two - - -",
        "a x 4 1 Min2 - - -",
        "a x 4 1 Max - - -",
        "a x 4 1 1 1.5 - -",
        "a x 4 1 1 1.0 - -",
        "a x 4 1 1 -0.2 - -",
        "a x 4 1 1 yes - -",
        "a x 4 1 1 - maybe -",
        "a x 4 1 1 - no -",
        "a x 4 1 1 - - Relu",
        "a x 4 1 1 - - Leak",
        "a x 4 1 1 - - Leak_2",
        "a x 4 1 1 - - ReLU_0.2",
        "a x_+_w 2 - - - - -",
        "a x_+_w 2 1 1 - - -",
        "a x_|_w 4 - - - - -",
        "a x 3 - - - - -",
        "a x 2 - 2 - - -",
        "a x 2 - - 0.2 - -",
        "a - 4 1 - - - -",
        "a - 4 3_same - - - -",
        "a - 4 - - 0.2 - -",
        "a - 4 - - - yes -",
        "a - 4 - - - - ReLU",
        "a - 4 - Max2 - - -",
    ],
)
def test_a_malformed_row_is_an_error_that_names_it(row: str) -> None:
    with pytest.raises(TableError) as error:
        _table(X, "w - 3 - - - - -", row).rows(3)
    assert f"row {row.split(' ')[0]!r}" in str(error.value)
    assert "Test" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("row", ["a - 4 - 2 - - -", "a x_+_zeros 2 - - - - -", "a x_|_zeros 4 1 1 - - -"])
def test_a_row_that_cannot_be_built_is_refused(row: str) -> None:
    with pytest.raises(TableError, match="row 'a'"):
        _table(X, row).rows(3)


def test_an_empty_table_is_a_table_error() -> None:
    with pytest.raises(TableError):
        Table("Test", "").rows(3)


@pytest.mark.parametrize(
    "header",
    [
        HEADER.replace("Width", "Kernel"),
        HEADER.replace(" Activation", ""),
        HEADER.replace("Channels Width", "Width Channels"),
    ],
)
def test_a_wrong_header_is_an_error(header: str) -> None:
    with pytest.raises(TableError, match="Test: the columns are"):
        _table(X, header=header).rows(3)


def test_the_pooling_header_of_table_10_is_read() -> None:
    assert _table(X, "a x 4 1 Max2 - - -", header=HEADER.replace("Stride", "Pooling")).rows(3)[1].pool == "Max2"


def test_a_row_is_typed() -> None:
    rows = _table(X, "w - k - - - - -", "a x_|_w k 4 2 0.25 yes Leak_0.1").rows(7)
    assert rows[1].channels == 7
    assert rows[2] == Row("a", ("x", "w"), "|", 7, 4, 2, "", 0.25, True, "Leak", 0.1)


def test_a_same_width_is_padded_by_half_of_itself() -> None:
    rows = _table(X, *(f"a{w} x 4 {w}_same 1 - - -" for w in (1, 3, 5, 7)), "b x 4 3 1 - - -").rows(3)
    assert [(row.width, row.padding) for row in rows[1:]] == [(1, 0), (3, 1), (5, 2), (7, 3), (3, 0)]


def test_tabs_separate_cells_too() -> None:
    table = _table(X, "a x_+_x 2 - - - - ReLU")
    assert replace(table, text=table.text.replace("  ", "\t")).rows(3) == table.rows(3)


AMENDMENT = Amendment("a", "Width", "1", "3", "why")


def test_an_amendment_is_built_and_leaves_its_table_alone() -> None:
    table = _table(X, "a x 4 1 1 - - -")
    amended = amend(table, AMENDMENT, Amendment("a", "Width", "3", "5", "again"))
    assert [t.rows(3)[1].width for t in (table, amended)] == [1, 5]


@pytest.mark.parametrize(
    ("amendment", "message"),
    [
        (replace(AMENDMENT, printed="2"), "row 'a', column 'Width' prints '1', the amendment expects '2'"),
        (replace(AMENDMENT, column="Size"), "row 'a', column 'Size'"),
        (replace(AMENDMENT, row="b"), r"rows that do not exist: \['b'\]"),
        (replace(AMENDMENT, built="wide"), "row 'a', column Width: 'wide'"),
    ],
)
def test_an_amendment_that_does_not_fit_is_an_error(amendment: Amendment, message: str) -> None:
    with pytest.raises(TableError, match=message):
        amend(_table(X, "a x 4 1 1 - - -"), amendment).rows(3)


# the paper's tables


SIZES = {
    "ENCODER": {0: 28, 1: 27, 2: 13, 3: 6, 4: 4, 5: 1},
    "DECODER": {1: 1, 2: 4, 3: 6, 4: 13, 5: 27, 6: 28},
    "DISCRIMINATOR": {0: 28, 1: 27, 2: 13, 3: 6, 4: 4, 5: 1},
}


def _expected_size(table: str, row: str) -> int:
    """Height of a row of Tables 3-6: x and the numbered rows of the image branch follow SIZES, others are points."""
    digits_ = "".join(c for c in row if c.isdigit())
    if table == "DECODER":
        return 28 if row == "x" else SIZES[table][int(digits_ or 1)]
    image = row == "x" or (table == "ENCODER" and digits_) or (table == "DISCRIMINATOR" and row.startswith("x"))
    return SIZES[table][int(digits_ or 0)] if image and table != "PRIOR" else 1


@pytest.mark.parametrize("k", [10, 30])
@pytest.mark.parametrize("name", MNIST)
def test_every_row_of_tables_3_to_6_has_its_shape(name: str, k: int) -> None:
    table = MNIST[name]
    shapes = {row: shape for row, shape, _ in Net(table, k, Noise.seeded(0)).summary()}
    for row in table.rows(k):
        size = _expected_size(name, row.name)
        assert shapes[row.name] == (row.channels, size, size), row.name


def _conv(i: int, o: int, w: int, bias: bool = False) -> int:
    return i * o * w * w + o * bias


def _branch(widths: list[int], channels: list[int]) -> int:
    return sum(_conv(i, o, w) for w, i, o in zip(widths, channels[:-1], channels[1:], strict=True))


@pytest.mark.parametrize("k", [10, 20])
def test_parameter_counts_of_tables_3_to_6(k: int) -> None:
    """Kernels and batch normalisation (2 per channel); biases only where no normalisation follows."""
    down, up = [1, 32, 32, 64, 64, 128], [64, 64, 32, 32]
    encoder = 2 * _branch([2, 3, 3, 3, 4], down) + 2 * 2 * sum(down[1:])
    encoder += 2 * _conv(128, k, 1, True) + 2 * _conv(128, 64, 1, True)
    prior = _conv(k, 64, 1) + _conv(64, 64, 1) + 2 * 2 * 64 + _conv(64, 64, 1, True)
    decoder = _conv(k, 128, 1) + _conv(64, 128, 1) + 2 * _branch([4, 3, 3, 3], [128, *up])
    decoder += 2 * 2 * (128 + sum(up)) + 2 * _conv(32, 1, 2, True)
    discriminator = sum(_conv(i, o, w, True) for w, i, o in zip([2, 3, 3, 3, 4], down[:-1], down[1:], strict=True))
    discriminator += _conv(k, 64, 1, True) + 3 * _conv(64, 64, 1, True)
    discriminator += 2 * _conv(256, 256, 1, True) + _conv(256, 1, 1, True)
    expected = dict(zip(MNIST, (encoder, prior, decoder, discriminator), strict=True))
    for name, table in MNIST.items():
        net = Net(table, k, Noise.seeded(0))
        assert sum(p.numel() for p in net.parameters()) == expected[name], name
        assert sum(count for _, _, count in net.summary()) == expected[name], name


# rows of Tables 7-10: output shape; parameters that do not depend on k, and per category. Kernels are inputs x outputs x
# width²; a kernel whose outputs go through batch normalisation has no bias; batch normalisation has 2 a channel.
Expected = dict[str, tuple[tuple[int, int, int], int, int]]
TABLE_7: Expected = {
    "x": ((3, 32, 32), 0, 0),
    "x1": ((96, 32, 32), 2_592 + 192, 0),
    "x2": ((96, 32, 32), 82_944 + 192, 0),
    "x3": ((96, 16, 16), 82_944 + 192, 0),
    "x4": ((192, 16, 16), 165_888 + 384, 0),
    "x5": ((192, 16, 16), 331_776 + 384, 0),
    "x6": ((192, 8, 8), 331_776 + 384, 0),
    "x7": ((384, 6, 6), 663_552 + 768, 0),
    **{f"{v}1": ((192, 6, 6), 73_728, 0) for v in "yz"},
    **{f"{v}1a": ((192, 6, 6), 384, 0) for v in "yz"},
    **{f"{v}2": ((96, 6, 6), 18_432, 0) for v in "yz"},
    **{f"{v}2a": ((96, 1, 1), 192, 0) for v in "yz"},
    **dict.fromkeys(("yμ", "yσ"), ((0, 1, 1), 0, 96 + 1)),
    "y": ((0, 1, 1), 0, 0),
    **dict.fromkeys(("zμ", "zσ"), ((64, 1, 1), 6_144 + 64, 0)),
    "z": ((64, 1, 1), 0, 0),
}
TABLE_8: Expected = {
    "y": ((0, 1, 1), 0, 0),
    **dict.fromkeys(("zμ", "zσ"), ((64, 1, 1), 64, 64)),
    "z": ((64, 1, 1), 0, 0),
}
TABLE_9: Expected = {
    "y": ((0, 1, 1), 0, 0),
    "z": ((64, 1, 1), 0, 0),
    "y1": ((512, 1, 1), 0, 512),
    "z1": ((512, 1, 1), 32_768, 0),
    **{f"{v}1a": ((512, 1, 1), 1_024, 0) for v in "yz"},
    **{f"{v}2": ((256, 4, 4), 2_097_152, 0) for v in "yz"},
    **{f"{v}2a": ((256, 4, 4), 512, 0) for v in "yz"},
    **{f"{v}3": ((256, 6, 6), 589_824, 0) for v in "yz"},
    **{f"{v}3a": ((256, 6, 6), 512, 0) for v in "yz"},
    **{f"{v}4": ((128, 13, 13), 294_912, 0) for v in "yz"},
    **{f"{v}4a": ((128, 13, 13), 256, 0) for v in "yz"},
    **{f"{v}5": ((128, 15, 15), 147_456, 0) for v in "yz"},
    **{f"{v}5a": ((128, 15, 15), 256, 0) for v in "yz"},
    **{f"{v}6": ((3, 32, 32), 6_144 + 3, 0) for v in "yz"},
    "x": ((3, 32, 32), 0, 0),
}
TABLE_10: Expected = {
    "x": ((3, 32, 32), 0, 0),
    "y": ((0, 1, 1), 0, 0),
    "z": ((64, 1, 1), 0, 0),
    "x1": ((96, 32, 32), 2_592 + 96, 0),
    "x2": ((96, 32, 32), 82_944 + 96, 0),
    "x3": ((96, 16, 16), 82_944 + 96, 0),
    "x4": ((192, 16, 16), 165_888 + 192, 0),
    "x5": ((192, 16, 16), 331_776 + 192, 0),
    "x6": ((192, 8, 8), 331_776 + 192, 0),
    "x7": ((384, 6, 6), 663_552 + 384, 0),
    "x8": ((192, 6, 6), 73_728 + 192, 0),
    "x9": ((96, 1, 1), 18_432 + 96, 0),
    "y1": ((96, 1, 1), 96, 96),
    "z1": ((96, 1, 1), 6_144 + 96, 0),
    **{f"{v}2": ((96, 1, 1), 9_216 + 96, 0) for v in "yz"},
    "p0": ((288, 1, 1), 0, 0),
    **dict.fromkeys(("p1", "p2"), ((288, 1, 1), 82_944 + 288, 0)),
    "p": ((1, 1, 1), 288 + 1, 0),
}
SVHN = {
    "ENCODER": (TABLE_7, 1_861_856, 194),
    "PRIOR_VARIANCE": (TABLE_8, 128, 128),
    "DECODER": (TABLE_9, 6_308_870, 512),
    "DISCRIMINATOR": (TABLE_10, 1_946_881, 96),
}


@pytest.mark.parametrize("k", [10, 20, 30])
@pytest.mark.parametrize("name", SVHN)
def test_shapes_and_parameters_of_every_row_of_tables_7_to_10(name: str, k: int) -> None:
    """0 channels in the expectation stand for k."""
    expected, total, per_category = SVHN[name]
    summary = Net(getattr(svhn, name), k, Noise.seeded(0)).summary()
    assert {row: (shape, n) for row, shape, n in summary} == {
        row: ((channels or k, *size), n + m * k) for row, ((channels, *size), n, m) in expected.items()
    }
    assert sum(n for _, _, n in summary) == total + per_category * k


@pytest.mark.parametrize("k", [10, 30])
def test_the_encoders_of_ours_for_svhn_have_the_layers_of_table_7(k: int) -> None:
    """Eq. 15 only rewires; Eq. 6 has the trunk twice, one branch in each net, and y embedded in Gz(x, y)."""
    trunk = sum(TABLE_7[f"x{i}"][1] for i in range(1, 8))
    branch = 73_728 + 384 + 18_432 + 192
    expected = {
        "ENCODER_15": trunk + 2 * branch + 194 * k + 2 * 6_208,
        "ENCODER_Y": trunk + branch + 194 * k,
        "ENCODER_Z": trunk + branch + 96 * k + 2 * 6_208,
    }
    for name, count in expected.items():
        assert sum(p.numel() for p in Net(getattr(svhn, name), k, Noise.seeded(0)).parameters()) == count, name


@pytest.mark.parametrize("name", ["ENCODER", "ENCODER_15", "ENCODER_Y", "ENCODER_Z", "DISCRIMINATOR"])
def test_where_the_tables_for_svhn_pool(name: str) -> None:
    """The trunk halves after x3 and x6; the 6x6 positions left are averaged in the last row of each branch of the image."""
    averaged = {"ENCODER_Y": {"y2"}, "ENCODER_Z": {"z2a"}, "DISCRIMINATOR": {"x9"}}.get(name, {"y2a", "z2a"})
    pools = {row.name: row.pool for row in getattr(svhn, name).rows(10) if row.pool}
    assert pools == {"x3": "Max2", "x6": "Max2"} | dict.fromkeys(averaged, "Avg6")


@pytest.mark.parametrize("name", SVHN)
def test_the_activations_of_tables_7_to_10(name: str) -> None:
    rows = [row for row in getattr(svhn, name).rows(10) if row.inputs]
    special = {row.name: row.activation for row in rows if row.activation not in ("", "Leak")}
    noise = {"zσ": "ExpN"}
    assert special == {
        "ENCODER": {"yσ": "ExpN", "y": "Softmax"} | noise,
        "PRIOR_VARIANCE": noise,
        "DECODER": {"x": "Sigmoid"},
        "DISCRIMINATOR": {},
    }.get(name)
    leaky = {row.name for row in rows if row.activation == "Leak"}
    assert leaky == {
        "ENCODER": {row.name for row in rows if row.batchnorm},
        "PRIOR_VARIANCE": set(),
        "DECODER": {row.name for row in rows if row.batchnorm and row.name.startswith("z")},
        "DISCRIMINATOR": {row.name for row in rows} - {"p0", "p"},
    }.get(name)
    assert all(row.slope == 0.2 for row in rows if row.name in leaky)


def test_the_discriminator_of_table_10_reads_x9_and_p2_and_normalises_nothing() -> None:
    rows = {row.name: row for row in svhn.DISCRIMINATOR.rows(10)}
    assert rows["p0"].inputs == ("x9", "y2", "z2") and rows["p"].inputs == ("p2",)
    assert not any(row.batchnorm for row in rows.values())
    assert {name for name, row in rows.items() if row.dropout} == {"x4", "x7", "y2", "z2", "p1", "p2", "p"}
    assert {row.dropout for row in rows.values()} == {0.0, 0.1}


def test_the_last_row_of_table_6_reads_p2() -> None:
    rows = {row.name: row for row in mnist.DISCRIMINATOR.rows(10)}
    assert rows["p"].inputs == ("p2",) and rows["p2"].inputs == ("p1",)
    assert not any(row.batchnorm for row in rows.values())
    assert [name for name, row in rows.items() if row.dropout] == ["x2", "x3", "x4", "x5", "y2", "z2", "p1", "p2", "p"]


@pytest.mark.parametrize("name", ALL)
def test_every_row_of_every_table_serves_an_output(name: str) -> None:
    rows = ALL[name].rows(5)
    read = {given for row in rows for given in row.inputs}
    assert {row.name for row in rows} - read <= {"x", "y", "z", "p"}


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_of_every_table_gets_a_gradient(name: str) -> None:
    net = Net(ALL[name], 5, Noise.seeded(0), std=0.3)
    noise = Noise.seeded(1)
    inputs = {given: noise.normal(6, *size) for given, size in net.sizes.items()}
    values = net(noise, **inputs)
    ends = [values[row] for row in ("x", "y", "z", "p") if row in values and row not in inputs]
    total = sum(((noise.normal(*end.shape) * end).sum() for end in ends), torch.zeros(()))
    for parameter, gradient in zip(net.parameters(), torch.autograd.grad(total, list(net.parameters())), strict=True):
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0, parameter.shape


# one layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("transposed", "size", "width", "stride"),
    [(True, 1, 4, 1), (True, 1, 4, 2), (False, 4, 4, 1), (False, 4, 4, 2), (False, 1, 1, 1), (True, 1, 1, 1)]
    + [(False, 5, 2, 1), (False, 6, 2, 2), (False, 7, 2, 2)]
    + [(False, 6, 3, 1), (False, 13, 3, 2), (True, 6, 3, 2), (True, 4, 3, 1), (False, 5, 1, 1), (True, 5, 1, 1)],
)
def test_linear_is_the_convolution_of_torch(transposed: bool, size: int, width: int, stride: int, bias: bool) -> None:
    noise = Noise.seeded(2)
    row = Row("a", ("x",), "+", 5, width, stride, "", 0.0, False, "", 0.0)
    layer = Layer(row, 3, transposed, bias, 0.1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(noise.normal(*parameter.shape))
    x = noise.normal(4, 3, size, size).requires_grad_()
    assert layer.weight is not None
    convolve = F.conv_transpose2d if transposed else F.conv2d
    got, expected = layer.linear(x), convolve(x, layer.weight, layer.bias, stride)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-5)
    weight = noise.normal(*got.shape)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), [x, *layer.parameters()]),
        torch.autograd.grad((expected * weight).sum(), [x, *layer.parameters()]),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("transposed", "inputs"), [(False, 3), (True, 3), (False, 1)])
@pytest.mark.parametrize(("size", "width"), [(6, 3), (5, 5), (3, 3), (1, 3)])
def test_a_padded_layer_is_the_convolution_of_the_padded_image(
    size: int, width: int, transposed: bool, inputs: int, bias: bool
) -> None:
    """Also where the image is as large as the kernel or a single position, and where there are few inputs."""
    noise = Noise.seeded(2)
    row = _table(f"x - {inputs} - - - - -", f"a x 5 {width}_same 1 - - -").rows(3)[1]
    layer = Layer(row, inputs, transposed, bias, 0.1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(noise.normal(*parameter.shape))
    x = noise.normal(4, inputs, size, size)
    assert layer.weight is not None
    # a transposed one is a convolution with the kernel turned by half a circle
    kernel = layer.weight.transpose(0, 1).flip(2, 3) if transposed else layer.weight
    half = width // 2
    expected = F.conv2d(F.pad(x, (half, half, half, half)), kernel, layer.bias)
    got = layer.linear(x)
    assert got.shape == (4, 5, size, size)
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(("size", "width", "stride"), [(6, 2, 1), (7, 2, 2), (4, 4, 1), (9, 3, 2)])
def test_linear_has_the_second_derivatives_of_the_convolution(size: int, width: int, stride: int) -> None:
    """The gradient penalty of a discriminator needs them."""
    noise = Noise.seeded(15)
    layer = Layer(Row("a", ("x",), "+", 3, width, stride, "", 0.0, False, "", 0.0), 1, False, True, 0.1)
    weight = layer.weight
    assert weight is not None
    weight.data.copy_(noise.normal(*weight.shape))
    x = noise.normal(4, 1, size, size).requires_grad_()

    def derivative(h: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(torch.tanh(h).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), weight)[0]

    expected = derivative(F.conv2d(x, weight, layer.bias, stride))
    assert torch.allclose(derivative(layer.linear(x)), expected, rtol=1e-4, atol=1e-4)


def _identity(net: Net, name: str) -> None:
    weight = _weight(net, name)
    with torch.no_grad():
        weight.copy_(torch.eye(len(weight))[:, :, None, None])


def test_dropout_acts_on_the_input_of_the_layer() -> None:
    """After the layer it would drop the bias as well, and whole outputs of a dense kernel."""
    net = _net(X, "a x 2 1 1 0.2 - -")
    _identity(net, "a")
    with torch.no_grad():
        _bias(net, "a").fill_(7.0)
    x = Noise.seeded(3).normal(5000, 2)
    ratio = ((net(Noise.seeded(4), x=x)["a"].flatten(1) - 7) / x).detach()
    near = torch.minimum(ratio.abs(), (ratio - 1.25).abs())
    assert torch.quantile(near, 0.99) < 1e-3
    assert 0.17 < (ratio.abs() < 0.5).double().mean() < 0.23


def test_dropout_masks_single_pixels_in_training_and_only_with_noise() -> None:
    net = _net(X, "a x 2 1 1 0.2 - -", size=4)
    _identity(net, "a")
    ones = torch.ones(50, 2, 4, 4)
    assert torch.equal(net(None, x=ones)["a"], ones)
    dropped = net(Noise.seeded(5), x=ones)["a"]
    assert torch.equal(dropped.unique(), torch.tensor([0.0, 1.25]))
    assert not torch.equal(dropped[:, 0], dropped[:, 1])
    assert bool((dropped.flatten(2).amin(2) != dropped.flatten(2).amax(2)).any())  # not whole channels
    assert torch.equal(net.eval()(Noise.seeded(5), x=ones)["a"], ones)  # as anywhere, evaluation drops nothing


def test_pooling() -> None:
    x = torch.arange(32.0).view(1, 2, 4, 4)
    net = _net(X, "a x 2 - Max2 - - -", "b x 2 - Avg4 - - -", size=4)
    values = net(None, x=x)
    assert values["a"].flatten().tolist() == [5, 7, 13, 15, 21, 23, 29, 31]
    assert values["b"].flatten().tolist() == [7.5, 23.5]


def test_pooling_comes_after_the_activation() -> None:
    net = _net(X, "a x 2 - Avg2 - - ReLU", size=2)
    x = torch.tensor([-4.0, 0, 0, 4]).view(1, 1, 2, 2).expand(1, 2, 2, 2)
    assert net(None, x=x)["a"].flatten().tolist() == [1, 1]


@pytest.mark.parametrize("pool", ["Avg2", "Max2"])
def test_pool_first_pools_before_batch_normalisation(pool: str) -> None:
    """Dropout, convolution, pooling, normalisation, activation, against the same written out; and not the same as last."""
    table = _table(X, f"a x 3 1 {pool} 0.2 yes Leak_0.2", size=4)
    first, last = (Net(table, 3, Noise.seeded(1), std=0.5, pool_first=f) for f in (True, False))
    x = Noise.seeded(3).normal(6, 2, 4, 4)
    (mask,) = Noise.seeded(4).masks([(6, 2, 4, 4)], 0.2)
    h = F.conv2d(x * mask / 0.8, _weight(first, "a"))
    pooled = F.avg_pool2d(h, 2) if pool == "Avg2" else F.max_pool2d(h, 2)
    expected = F.leaky_relu(F.batch_norm(pooled, None, None, training=True), 0.2)
    got = first(Noise.seeded(4), x=x)["a"]
    assert torch.allclose(got, expected, atol=1e-5)
    activated = F.leaky_relu(F.batch_norm(h, None, None, training=True), 0.2)
    expected = F.avg_pool2d(activated, 2) if pool == "Avg2" else F.max_pool2d(activated, 2)
    assert torch.allclose(last(Noise.seeded(4), x=x)["a"], expected, atol=1e-5)
    assert (got - expected).abs().max() > 0.1
    norm = _layer(first, "a").norm
    assert norm is not None and norm.running_mean is not None
    assert torch.allclose(norm.running_mean, 0.1 * pooled.mean((0, 2, 3)), atol=1e-6)


def test_activations() -> None:
    names: dict[str, Callable[[Tensor], Tensor]] = {
        "ReLU": F.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "Leak_0.3": lambda h: F.leaky_relu(h, 0.3),
    }
    x = Noise.seeded(6).normal(4, 2)
    net = _net(X, *(f"a{i} x 2 - - - - {name}" for i, name in enumerate(names)), "s x 2 - - - - Softmax")
    values = net(None, x=x)
    for i, function in enumerate(names.values()):
        assert torch.equal(values[f"a{i}"].flatten(1), function(x))
    assert torch.allclose(values["s"].sum(1), torch.ones(4, 1, 1))


def test_a_small_network_by_hand() -> None:
    net = _net(
        X, "a x 2 1 1 - - Leak_0.1", "b x_+_a 2 - - - - -", "c x_|_a 4 - - - - -", "d c k 1 1 - - -",
        "e zeros k - - - - ExpN", "f d_+_e k - - - - Softmax",
    )  # fmt: skip
    with torch.no_grad():
        _weight(net, "a").copy_(torch.tensor([[1.0, 2.0], [-3.0, 1.0]])[:, :, None, None])
        _bias(net, "a").copy_(torch.tensor([0.5, 0.0]))
        _weight(net, "d").copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]])[:, :, None, None])
    x = torch.tensor([[1.0, 2.0]])
    values = {name: value.flatten().detach() for name, value in net(Noise.seeded(7), x=x).items()}
    assert values["a"].tolist() == pytest.approx([5.5, -0.1])
    assert values["b"].tolist() == pytest.approx([6.5, 1.9])
    assert values["c"].tolist() == pytest.approx([1, 2, 5.5, -0.1])
    assert values["d"].tolist() == pytest.approx([1, 5.5, 1.9])
    assert torch.equal(values["e"], Noise.seeded(7).normal(3))  # exp(0.5 * 0) * noise
    assert torch.allclose(values["f"], torch.softmax(values["d"] + values["e"], 0))
    quiet = {name: value.flatten().detach() for name, value in net(None, x=x).items()}
    assert torch.equal(quiet["e"], torch.zeros(3))
    assert torch.allclose(quiet["f"], torch.softmax(quiet["d"], 0))


# some rows only


@pytest.mark.parametrize("name", ["ENCODER", "DECODER", "DISCRIMINATOR"])
def test_what_a_gpu_does_otherwise_is_the_same_function(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory in PyTorch's usual layout, masks that make up for what they drop, no patches; of the same masks."""
    table = getattr(mnist, name)
    net, stream = Net(table, 10, Noise.seeded(0), std=0.1), Noise.seeded(1)
    inputs = {row: stream.normal(3, *size) for row, size in net.sizes.items()}
    expected = net(Noise.seeded(2), **inputs)

    drawn = Noise.masks

    def masks(self: Noise, shapes: list[tuple[int, int, int, int]], p: float, *how: object) -> list[Tensor]:
        return [mask.contiguous() for mask in drawn(self, shapes, p)]

    monkeypatch.setattr(layers, "layout", lambda device: torch.contiguous_format)
    monkeypatch.setattr(Noise, "scales", True)
    monkeypatch.setattr(Noise, "masks", masks)
    monkeypatch.setattr(convolution, "FEW_TAPS", {})
    other = Net(table, 10, Noise.seeded(0), std=0.1)
    assert all(p.is_contiguous() for p in other.parameters())
    for row, value in other(Noise.seeded(2), **inputs).items():
        if row not in net.masked:  # such a row's output is masked, and its reader's weights make up for it on a CPU
            assert torch.allclose(value, expected[row], rtol=1e-4, atol=1e-5), row


def _branches() -> Net:
    """Two inputs, a shared row, a branch that draws and normalises on either side."""
    return _net(
        X, "w - 3 - - - - -", "t x 2 1 1 - yes -", "a t 2 1 1 - yes -", "n a 2 1 1 - - ExpN", "b a_+_n 2 - - - - -",
        "c t 2 1 1 0.5 yes -", "d c 2 1 1 - - ExpN", "e d_|_w k 1 1 - - -",
    )  # fmt: skip


def test_wanted_rows_and_what_they_depend_on_are_computed_and_nothing_else() -> None:
    net, whole = _branches(), _branches()
    noise = Noise.seeded(3)
    x, w = noise.normal(5, 2), noise.normal(5, 3)
    stream = Noise.seeded(4)
    values = net(stream, "b", x=x)  # w is not needed, so it need not be given
    assert set(values) == {"x", "t", "a", "n", "b"}
    masked = Noise.seeded(4)
    masked.masks = lambda shapes, *how: [Noise.seeded(5).masks([shape], *how)[0] for shape in shapes]  # type: ignore[method-assign]
    everything = whole(masked, x=x, w=w)
    assert set(everything) == {"x", "w", "t", "a", "n", "b", "c", "d", "e"}
    assert all(torch.equal(values[name], everything[name]) for name in values)
    # no draw and no running statistic of a row that is left out
    expected = Noise.seeded(4)
    expected.normal(5, 2, 1, 1)
    assert torch.equal(stream.normal(3), expected.normal(3))
    batches = {name: int(b) for name, b in net.named_buffers() if name.endswith("num_batches_tracked")}
    assert batches == {f"layers.{name}.norm.num_batches_tracked": int(name != "c") for name in ("t", "a", "c")}


def test_each_choice_of_rows_is_its_own() -> None:
    net, x, w = _branches(), torch.ones(5, 2), torch.ones(5, 3)
    assert set(net(None, "d", x=x)) == {"x", "t", "c", "d"}
    assert set(net(None, "a", "c", x=x)) == {"x", "t", "a", "c"}
    assert set(net(None, "e", x=x, w=w)) == {"x", "w", "t", "c", "d", "e"}
    assert set(net(None, "d", x=x, w=w)) == {"x", "t", "c", "d"}
    assert len(net(None, x=x, w=w)) == 9
    with pytest.raises(KeyError):
        net(None, "e", x=x)


# biases, initialisation


def test_biases_stand_only_where_normalisation_does_not_remove_them() -> None:
    net = _net(
        X, "a x 2 1 1 - yes -", "b x 2 1 1 - - -", "b1 b 2 - - - yes -", "c x 2 1 1 - - -", "c1 c 2 - - - yes -",
        "c2 c 2 - - - - ReLU", "d x 2 1 1 - - -", "e d 2 1 1 - yes -", "f x 2 1 1 - - -",
    )  # fmt: skip
    biased = {name for name in net.layers if _layer(net, name).bias is not None}
    assert biased == {"c", "d", "f"}


def test_a_bias_before_an_activation_stays() -> None:
    net = _net(X, "a x 2 1 1 - - ReLU", "b a 2 - - - yes -")
    assert _layer(net, "a").bias is not None


@pytest.mark.parametrize("pool_first", [False, True])
@pytest.mark.parametrize(
    "name", ["mnist.ENCODER", "mnist.DECODER", "digits.ENCODER_Z", "plane.DECODER", "svhn.ENCODER", "svhn.ENCODER_Z"]
)
def test_the_removed_biases_would_change_nothing(name: str, pool_first: bool) -> None:
    net = Net(ALL["models." + name], 4, Noise.seeded(8), std=0.2, pool_first=pool_first)
    noise = Noise.seeded(9)
    inputs = {given: noise.normal(8, *size) for given, size in net.sizes.items()}
    without = net(Noise.seeded(10), **inputs)
    given = 0
    for layer in net.layers.values():
        assert isinstance(layer, Layer)
        if layer.weight is not None and layer.bias is None:
            layer.bias, given = nn.Parameter(torch.full((layer.row.channels,), 0.7)), given + 1
    biased = net(Noise.seeded(10), **inputs)
    assert given > 0
    for row in ("x", "yμ", "zμ"):
        if row in biased and row not in inputs:
            assert torch.allclose(without[row], biased[row], atol=1e-4)


def test_kernels_are_normal_and_biases_zero() -> None:
    net = Net(mnist.DISCRIMINATOR, 10, Noise.seeded(11))
    kernels = torch.cat([p.detach().flatten() for p in net.parameters() if p.ndim == 4]).double()
    n = len(kernels)
    assert abs(kernels.mean()) < 5 * 0.02 / n**0.5
    assert abs(kernels.std() / 0.02 - 1) < 5 / (2 * n) ** 0.5
    assert abs((kernels / 0.02).pow(4).mean() - 3) < 5 * (96 / n) ** 0.5
    assert all(not p.any() for p in net.parameters() if p.ndim == 1)
    assert all(p.requires_grad for p in net.parameters())


def test_normalisation_starts_at_one_and_zero_with_its_momentum() -> None:
    net = Net(mnist.PRIOR, 10, Noise.seeded(12), momentum=0.25)
    norm = _layer(net, "z1").norm
    assert norm is not None and norm.momentum == 0.25
    assert torch.equal(norm.weight, torch.ones(64)) and torch.equal(norm.bias, torch.zeros(64))


def test_the_noise_seed_decides_the_kernels() -> None:
    a, b, c = (Net(digits.ENCODER, 10, Noise.seeded(seed)) for seed in (1, 1, 2))
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(a.parameters()), next(c.parameters()))


# the command


def test_main_prints_a_table_with_its_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mnist.DISCRIMINATOR", "20"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Table 6. MNIST: D(x, y, z)\n")
    assert next(line for line in out.splitlines() if line.split()[:1] == ["y"]).endswith(" 0")
    assert "20x1x1" in out and "32x27x27" in out and "k = 20" in out
    assert "Table 6, p: Input 'p2' for the printed 'p1': " in out


def test_main_says_how_it_is_used_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for ask in ("-h", "--help"):
        assert main([ask]) == 0
    assert capsys.readouterr().out.count("usage: python -m models.layers MODULE.TABLE [K]") == 2


@pytest.mark.parametrize("arguments", [["mnist.NOTHING"], ["nowhere.ENCODER"], ["mnist"], [], ["mnist.ENCODER", "x"]])
def test_main_answers_a_bad_name_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert arguments[1:] != ["x"] or "K: expected a whole number, got 'x'; usage: " in err


@pytest.mark.parametrize("arguments", [["mnist.Amendment"], ["mnist.ENCODER", "0"], ["mnist.ENCODER", "-3"]])
def test_main_answers_what_is_no_table(arguments: list[str]) -> None:
    assert main(arguments) == 2


def test_the_printed_columns_are_aligned() -> None:
    _, header, *rows = describe(plane.DISCRIMINATOR, 3).splitlines()[:11]
    for title in ("Output", "Input", "Channels"):
        at = header.index(title)
        assert all(line[at - 1] == " " != line[at] for line in rows), title


def test_the_command_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "models.layers", "plane.NOTHING"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_inputs_may_be_flat() -> None:
    net = _net("x - 3 - - - - -", "a x 2 2 1 - - ReLU", size=2)
    x: Tensor = Noise.seeded(13).normal(5, 3, 2, 2)
    assert torch.equal(net(None, x=x)["a"], net(None, x=x.flatten(1))["a"])


def test_departures_name_each_reason_once_with_its_rows() -> None:
    changes = [Amendment(row, "Width", "2", "3", "wider") for row in ("a", "b")]
    table = amend(
        _table(X, "a x 4 2 1 - - -", "b x 4 2 1 - - -"), *changes, Amendment("b", "Channels", "4", "5", "more")
    )
    assert table.departures() == [
        "Test, a, b: Width '3' for the printed '2': wider.",
        "Test, b: Channels '5' for the printed '4': more.",
    ]
    assert Net(table, 3, Noise.seeded(1)).departures == table.departures()
