"""Networks for points in the plane: two hidden layers, our shortest demonstration of the method.

A point is an image of one position with two channels, so width-1 layers are plain linear maps.
"""

from models.tables import Table, without_z

ENCODER = Table(
    "Ours, plane: Gz(x) Gy(x, Gz(x))",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         2         -      -       -        -          -
    y1    x         64        1      1       -        -          -
    z1    x         64        1      1       -        -          -
    y1a   y1 + z1   64        -      -       -        yes        Leak 0.2
    z1a   z1        64        -      -       -        yes        Leak 0.2
    y2    y1a       64        1      1       -        -          -
    z2    z1a       64        1      1       -        -          -
    y2a   y2 + z2   64        -      -       -        yes        Leak 0.2
    z2a   z2        64        -      -       -        yes        Leak 0.2
    yμ    y2a       k         1      1       -        -          -
    yσ    y2a       k         1      1       -        -          ExpN
    y     yμ + yσ   k         -      -       -        -          Softmax
    zμ    z2a       2         1      1       -        -          -
    zσ    z2a       2         1      1       -        -          ExpN
    z     zμ + zσ   2         -      -       -        -          -
    """,
)

ENCODER_15 = without_z(ENCODER, 2)

ENCODER_Y = Table(
    "Ours, plane: Gy(x)",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         2         -      -       -        -          -
    y1    x         64        1      1       -        yes        Leak 0.2
    y2    y1        64        1      1       -        yes        Leak 0.2
    yμ    y2        k         1      1       -        -          -
    yσ    y2        k         1      1       -        -          ExpN
    y     yμ + yσ   k         -      -       -        -          Softmax
    """,
)

ENCODER_Z = Table(
    "Ours, plane: Gz(x, y)",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         2         -      -       -        -          -
    y     -         k         -      -       -        -          -
    z1    x         64        1      1       -        yes        Leak 0.2
    z2    z1        64        1      1       -        -          -
    zy    y         64        1      1       -        -          -
    z2a   z2 + zy   64        -      -       -        yes        Leak 0.2
    zμ    z2a       2         1      1       -        -          -
    zσ    z2a       2         1      1       -        -          ExpN
    z     zμ + zσ   2         -      -       -        -          -
    """,
)

PRIOR = Table(
    "Ours, plane: Gz(y), learned means and unit variance",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -         k         -      -       -        -          -
    zμ    y         2         1      1       -        -          -
    zσ    zeros     2         -      -       -        -          ExpN
    z     zμ + zσ   2         -      -       -        -          -
    """,
)

PRIOR_VARIANCE = Table(
    "Ours, plane, in the shape of Table 8: Gz(y)",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -         k         -      -       -        -          -
    zμ    y         2         1      1       -        -          -
    zσ    y         2         1      1       -        -          ExpN
    z     zμ + zσ   2         -      -       -        -          -
    """,
)

DECODER = Table(
    "Ours, plane: Gx(y, Gz(y))",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -         k         -      -       -        -          -
    z     -         2         -      -       -        -          -
    y1    y         64        1      1       -        -          -
    z1    z         64        1      1       -        -          -
    y1a   y1 + z1   64        -      -       -        yes        Leak 0.2
    x2    y1a       64        1      1       -        yes        Leak 0.2
    x     x2        2         1      1       -        -          -
    """,
    transposed=True,
)

DISCRIMINATOR = Table(
    "Ours, plane: D(x, y, z); a sum of linear maps is one linear map of the concatenation",
    """
    Name  Input         Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -             2         -      -       -        -          -
    y     -             k         -      -       -        -          -
    z     -             2         -      -       -        -          -
    x1    x             64        1      1       -        -          -
    y1    y             64        1      1       -        -          -
    z1    z             64        1      1       -        -          -
    p1    x1 + y1 + z1  64        -      -       -        -          Leak 0.2
    p2    p1            64        1      1       -        -          Leak 0.2
    p     p2            1         1      1       -        -          -
    """,
)
