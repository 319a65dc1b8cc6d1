"""Networks for 8x8 digits: the wiring of Tables 3-6 with two hidden layers, ours.

A kernel of width 8 sees the whole image, so every layer is a plain matrix product: a step takes milliseconds on one core.
There is no dropout: with it these nets learned more slowly and to a higher error (docs/experiments.md).
"""

from models.tables import Table, without_z

ENCODER = Table(
    "Ours, digits: Gz(x) Gy(x, Gz(x))",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         1         -      -       -        -          -
    y1    x         256       8      1       -        -          -
    z1    x         256       8      1       -        -          -
    y1a   y1 + z1   256       -      -       -        yes        Leak 0.2
    z1a   z1        256       -      -       -        yes        Leak 0.2
    y2    y1a       128       1      1       -        -          -
    z2    z1a       128       1      1       -        -          -
    y2a   y2 + z2   128       -      -       -        yes        Leak 0.2
    z2a   z2        128       -      -       -        yes        Leak 0.2
    yμ    y2a       k         1      1       -        -          -
    yσ    y2a       k         1      1       -        -          ExpN
    y     yμ + yσ   k         -      -       -        -          Softmax
    zμ    z2a       16        1      1       -        -          -
    zσ    z2a       16        1      1       -        -          ExpN
    z     zμ + zσ   16        -      -       -        -          -
    """,
    sizes={"x": 8},
)

ENCODER_15 = without_z(ENCODER, 2)

ENCODER_Y = Table(
    "Ours, digits: Gy(x)",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         1         -      -       -        -          -
    y1    x         256       8      1       -        yes        Leak 0.2
    y2    y1        128       1      1       -        yes        Leak 0.2
    yμ    y2        k         1      1       -        -          -
    yσ    y2        k         1      1       -        -          ExpN
    y     yμ + yσ   k         -      -       -        -          Softmax
    """,
    sizes={"x": 8},
)

ENCODER_Z = Table(
    "Ours, digits: Gz(x, y)",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         1         -      -       -        -          -
    y     -         k         -      -       -        -          -
    z1    x         256       8      1       -        yes        Leak 0.2
    z2    z1        128       1      1       -        -          -
    zy    y         128       1      1       -        -          -
    z2a   z2 + zy   128       -      -       -        yes        Leak 0.2
    zμ    z2a       16        1      1       -        -          -
    zσ    z2a       16        1      1       -        -          ExpN
    z     zμ + zσ   16        -      -       -        -          -
    """,
    sizes={"x": 8},
)

PRIOR = Table(
    "Ours, digits, in the shape of Table 4: Gz(y)",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -         k         -      -       -        -          -
    z1    y         16        1      1       -        yes        Leak 0.2
    z2    z1        16        1      1       -        yes        Leak 0.2
    zμ    z2        16        1      1       -        -          -
    zσ    zeros     16        -      -       -        -          ExpN
    z     zμ + zσ   16        -      -       -        -          -
    """,
)

PRIOR_VARIANCE = Table(
    "Ours, digits, in the shape of Table 8: Gz(y)",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -         k         -      -       -        -          -
    zμ    y         16        1      1       -        -          -
    zσ    y         16        1      1       -        -          ExpN
    z     zμ + zσ   16        -      -       -        -          -
    """,
)

DECODER = Table(
    "Ours, digits: Gx(y, Gz(y))",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -        k         -      -       -        -          -
    z     -        16        -      -       -        -          -
    y1    y        128       1      1       -        -          -
    z1    z        128       1      1       -        -          -
    y1a   y1 + z1  128       -      -       -        yes        -
    z1a   z1       128       -      -       -        yes        Leak 0.2
    y2    y1a      256       1      1       -        -          -
    z2    z1a      256       1      1       -        -          -
    y2a   y2 + z2  256       -      -       -        yes        -
    z2a   z2       256       -      -       -        yes        Leak 0.2
    y3    y2a      1         8      1       -        -          -
    z3    z2a      1         8      1       -        -          -
    x     y3 + z3  1         -      -       -        -          Sigmoid
    """,
    transposed=True,
)

DISCRIMINATOR = Table(
    "Ours, digits: D(x, y, z)",
    """
    Name  Input         Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -             1         -      -       -        -          -
    y     -             k         -      -       -        -          -
    z     -             16        -      -       -        -          -
    x1    x             256       8      1       -        -          Leak 0.2
    x2    x1            128       1      1       -        -          Leak 0.2
    y1    y             64        1      1       -        -          Leak 0.2
    y2    y1            64        1      1       -        -          Leak 0.2
    z1    z             64        1      1       -        -          Leak 0.2
    z2    z1            64        1      1       -        -          Leak 0.2
    p0    x2 | y2 | z2  256       -      -       -        -          -
    p1    p0            256       1      1       -        -          Leak 0.2
    p2    p1            256       1      1       -        -          Leak 0.2
    p     p2            1         1      1       -        -          -
    """,
    sizes={"x": 8},
)
