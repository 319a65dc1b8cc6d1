"""Networks for MNIST averaged down to 14x14, ours: Tables 3-6 with one layer less and half the channels.

An epoch takes a tenth of the time that it takes at full size, so that questions can be asked with several seeds each.
"""

from models.tables import Table, without_z

ENCODER = Table(
    "Ours, MNIST 14x14, in the shape of Table 3: Gz(x) Gy(x, Gz(x))",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         1         -      -       -        -          -
    y1    x         16        2      1       0.2      -          -
    z1    x         16        2      1       0.2      -          -
    y1a   y1 + z1   16        -      -       -        yes        Leak 0.2
    z1a   z1        16        -      -       -        yes        Leak 0.2
    y2    y1a       32        3      2       0.2      -          -
    z2    z1a       32        3      2       0.2      -          -
    y2a   y2 + z2   32        -      -       -        yes        Leak 0.2
    z2a   z2        32        -      -       -        yes        Leak 0.2
    y3    y2a       32        3      1       0.2      -          -
    z3    z2a       32        3      1       0.2      -          -
    y3a   y3 + z3   32        -      -       -        yes        Leak 0.2
    z3a   z3        32        -      -       -        yes        Leak 0.2
    y4    y3a       64        4      1       0.2      -          -
    z4    z3a       64        4      1       0.2      -          -
    y4a   y4 + z4   64        -      -       -        yes        Leak 0.2
    z4a   z4        64        -      -       -        yes        Leak 0.2
    yμ    y4a       k         1      1       -        -          -
    yσ    y4a       k         1      1       -        -          ExpN
    y     yμ + yσ   k         -      -       -        -          Softmax
    zμ    z4a       32        1      1       -        -          -
    zσ    z4a       32        1      1       -        -          ExpN
    z     zμ + zσ   32        -      -       -        -          -
    """,
    sizes={"x": 14},
)

ENCODER_15 = without_z(ENCODER, 4)

ENCODER_Y = Table(
    "Ours, MNIST 14x14: Gy(x)",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -        1         -      -       -        -          -
    y1    x        16        2      1       0.2      yes        Leak 0.2
    y2    y1       32        3      2       0.2      yes        Leak 0.2
    y3    y2       32        3      1       0.2      yes        Leak 0.2
    y4    y3       64        4      1       0.2      yes        Leak 0.2
    yμ    y4       k         1      1       -        -          -
    yσ    y4       k         1      1       -        -          ExpN
    y     yμ + yσ  k         -      -       -        -          Softmax
    """,
    sizes={"x": 14},
)

ENCODER_Z = Table(
    "Ours, MNIST 14x14: Gz(x, y)",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -        1         -      -       -        -          -
    y     -        k         -      -       -        -          -
    z1    x        16        2      1       0.2      yes        Leak 0.2
    z2    z1       32        3      2       0.2      yes        Leak 0.2
    z3    z2       32        3      1       0.2      yes        Leak 0.2
    z4    z3       64        4      1       0.2      -          -
    zy    y        64        1      1       -        -          -
    z4a   z4 + zy  64        -      -       -        yes        Leak 0.2
    zμ    z4a      32        1      1       -        -          -
    zσ    z4a      32        1      1       -        -          ExpN
    z     zμ + zσ  32        -      -       -        -          -
    """,
    sizes={"x": 14},
)

PRIOR = Table(
    "Ours, MNIST 14x14, in the shape of Table 4: Gz(y)",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -        k         -      -       -        -          -
    z1    y        32        1      1       -        yes        Leak 0.2
    z2    z1       32        1      1       0.2      yes        Leak 0.2
    zμ    z2       32        1      1       -        -          -
    zσ    zeros    32        -      -       -        -          ExpN
    z     zμ + zσ  32        -      -       -        -          -
    """,
)

PRIOR_VARIANCE = Table(
    "Ours, MNIST 14x14, in the shape of Table 8: Gz(y)",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -        k         -      -       -        -          -
    zμ    y        32        1      1       -        -          -
    zσ    y        32        1      1       -        -          ExpN
    z     zμ + zσ  32        -      -       -        -          -
    """,
)

DECODER = Table(
    "Ours, MNIST 14x14, in the shape of Table 5: Gx(y, Gz(y))",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -        k         -      -       -        -          -
    z     -        32        -      -       -        -          -
    y1    y        64        1      1       -        -          -
    z1    z        64        1      1       -        -          -
    y1a   y1 + z1  64        -      -       -        yes        -
    z1a   z1       64        -      -       -        yes        Leak 0.2
    y2    y1a      32        4      1       0.2      -          -
    z2    z1a      32        4      1       0.2      -          -
    y2a   y2 + z2  32        -      -       -        yes        -
    z2a   z2       32        -      -       -        yes        Leak 0.2
    y3    y2a      32        3      1       0.2      -          -
    z3    z2a      32        3      1       0.2      -          -
    y3a   y3 + z3  32        -      -       -        yes        -
    z3a   z3       32        -      -       -        yes        Leak 0.2
    y4    y3a      16        3      2       0.2      -          -
    z4    z3a      16        3      2       0.2      -          -
    y4a   y4 + z4  16        -      -       -        yes        -
    z4a   z4       16        -      -       -        yes        Leak 0.2
    y5    y4a      1         2      1       0.2      -          -
    z5    z4a      1         2      1       0.2      -          -
    x     y5 + z5  1         -      -       -        -          Sigmoid
    """,
    transposed=True,
)

DISCRIMINATOR = Table(
    "Ours, MNIST 14x14, in the shape of Table 6: D(x, y, z)",
    """
    Name  Input         Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -             1         -      -       -        -          -
    y     -             k         -      -       -        -          -
    z     -             32        -      -       -        -          -
    x1    x             16        2      1       -        -          Leak 0.2
    x2    x1            32        3      2       0.2      -          Leak 0.2
    x3    x2            32        3      1       0.2      -          Leak 0.2
    x4    x3            64        4      1       0.2      -          Leak 0.2
    y1    y             32        1      1       -        -          Leak 0.2
    y2    y1            32        1      1       0.2      -          Leak 0.2
    z1    z             32        1      1       -        -          Leak 0.2
    z2    z1            32        1      1       0.2      -          Leak 0.2
    p0    x4 | y2 | z2  128       -      -       -        -          -
    p1    p0            128       1      1       0.2      -          Leak 0.2
    p2    p1            128       1      1       0.2      -          Leak 0.2
    p     p2            1         1      1       0.2      -          -
    """,
    sizes={"x": 14},
)
