"""Tables 7-10: the networks for SVHN, 32x32, as printed, with the amendments without which they could not be built.

Table 7 draws factorisation (7) in part, like Table 3, on a trunk x1-x7 that y and z share. `ENCODER_15` cuts z from y;
`ENCODER_Y` and `ENCODER_Z` are ours, the same layers wired as Eq. 6 says. Table 8 stands beside Table 4 in `models.mnist`.
"""

from models.mnist import PRIOR, PRIOR_VARIANCE
from models.tables import Amendment, Table, without_z

__all__ = ["DECODER", "DISCRIMINATOR", "ENCODER", "ENCODER_15", "ENCODER_Y", "ENCODER_Z", "PRIOR", "PRIOR_VARIANCE"]

_RGB = Amendment("x", "Channels", "1", "3", "SVHN is in colour, and Table 9 ends in 3 channels")
_SAME = tuple(
    Amendment(
        f"x{i}", "Width", "3", "3 same", "Avg6 needs 6 positions after x7: 32, 16 and 8 kept by padding, 8 to 6 in x7"
    )
    for i in range(1, 7)
)
_AVG6 = tuple(
    Amendment(row, column, printed, built, "pooling stands one column to the left; x3 and x6 have it under Stride")
    for row in ("y2a", "z2a")
    for column, printed, built in (("Width", "Avg6", "-"), ("Stride", "-", "Avg6"))
)
_LAST = "printed '4 2 1', which is '3 4 2' shifted by a cell: alone of all one-row changes it gives 32x32 RGB unpadded"

ENCODER = Table(
    "Table 7. SVHN: Gz(x) Gy(x, Gz(x))",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         1         -      -       -        -          -
    x1    x         96        3      -       -        yes        Leak 0.2
    x2    x1        96        3      -       -        yes        Leak 0.2
    x3    x2        96        3      Max2    -        yes        Leak 0.2
    x4    x3        192       3      -       -        yes        Leak 0.2
    x5    x4        192       3      -       -        yes        Leak 0.2
    x6    x5        192       3      Max2    -        yes        Leak 0.2
    x7    x6        384       3      -       -        yes        Leak 0.2
    y1    x7        192       1      -       -        -          -
    z1    x7        192       1      -       -        -          -
    y1a   y1 + z1   192       -      -       -        yes        Leak 0.2
    z1a   z1        192       -      -       -        yes        Leak 0.2
    y2    y1a       96        1      -       -        -          -
    z2    z1a       96        1      -       -        -          -
    y2a   y2 + z2   96        Avg6   -       -        yes        Leak 0.2
    z2a   z2        96        Avg6   -       -        yes        Leak 0.2
    yμ    y2a       k         1      1       -        -          -
    yσ    y2a       k         1      1       -        -          ExpN
    y     yμ + yσ   k         -      -       -        -          Softmax
    zμ    z2a       64        1      1       -        -          -
    zσ    z2a       64        1      1       -        -          ExpN
    z     zμ + zσ   64        -      -       -        -          -
    """,
    sizes={"x": 32},
    amendments=(_RGB, *_SAME, *_AVG6),
)

ENCODER_15 = without_z(ENCODER, 2)

ENCODER_Y = Table(
    "Ours, the y-branch of Table 7: Gy(x)",
    """
    Name  Input    Channels  Width   Stride  Dropout  BatchNorm  Activation
    x     -        3         -       -       -        -          -
    x1    x        96        3 same  -       -        yes        Leak 0.2
    x2    x1       96        3 same  -       -        yes        Leak 0.2
    x3    x2       96        3 same  Max2    -        yes        Leak 0.2
    x4    x3       192       3 same  -       -        yes        Leak 0.2
    x5    x4       192       3 same  -       -        yes        Leak 0.2
    x6    x5       192       3 same  Max2    -        yes        Leak 0.2
    x7    x6       384       3       -       -        yes        Leak 0.2
    y1    x7       192       1       -       -        yes        Leak 0.2
    y2    y1       96        1       Avg6    -        yes        Leak 0.2
    yμ    y2       k         1       1       -        -          -
    yσ    y2       k         1       1       -        -          ExpN
    y     yμ + yσ  k         -       -       -        -          Softmax
    """,
    sizes={"x": 32},
)

ENCODER_Z = Table(
    "Ours, the z-branch of Table 7 with y embedded: Gz(x, y)",
    """
    Name  Input    Channels  Width   Stride  Dropout  BatchNorm  Activation
    x     -        3         -       -       -        -          -
    y     -        k         -       -       -        -          -
    x1    x        96        3 same  -       -        yes        Leak 0.2
    x2    x1       96        3 same  -       -        yes        Leak 0.2
    x3    x2       96        3 same  Max2    -        yes        Leak 0.2
    x4    x3       192       3 same  -       -        yes        Leak 0.2
    x5    x4       192       3 same  -       -        yes        Leak 0.2
    x6    x5       192       3 same  Max2    -        yes        Leak 0.2
    x7    x6       384       3       -       -        yes        Leak 0.2
    z1    x7       192       1       -       -        yes        Leak 0.2
    z2    z1       96        1       -       -        -          -
    zy    y        96        1       1       -        -          -
    z2a   z2 + zy  96        -       Avg6    -        yes        Leak 0.2
    zμ    z2a      64        1       1       -        -          -
    zσ    z2a      64        1       1       -        -          ExpN
    z     zμ + zσ  64        -       -       -        -          -
    """,
    sizes={"x": 32},
)

DECODER = Table(
    "Table 9. SVHN: Gx(y, Gz(y))",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -        k         -      -       -        -          -
    z     -        64        -      -       -        -          -
    y1    y        512       1      1       -        -          -
    z1    z        512       1      1       -        -          -
    y1a   y1 + z1  512       -      -       -        yes        -
    z1a   z1       512       -      -       -        yes        Leak 0.2
    y2    y1a      256       4      1       -        -          -
    z2    z1a      256       4      1       -        -          -
    y2a   y2 + z2  256       -      -       -        yes        -
    z2a   z2       256       -      -       -        yes        Leak 0.2
    y3    y2a      256       3      1       -        -          -
    z3    z2a      256       3      1       -        -          -
    y3a   y3 + z3  256       -      -       -        yes        -
    z3a   z3       256       -      -       -        yes        Leak 0.2
    y4    y3a      128       3      2       -        -          -
    z4    z3a      128       3      2       -        -          -
    y4a   y4 + z4  128       -      -       -        yes        -
    z4a   z4       128       -      -       -        yes        Leak 0.2
    y5    y4a      128       3      1       -        -          -
    z5    z4a      128       3      1       -        -          -
    y5a   y5 + z5  128       -      -       -        yes        -
    z5a   z5       128       -      -       -        yes        Leak 0.2
    y6    y5a      4         2      1       -        -          -
    z6    z5a      4         2      1       -        -          -
    x     y6 + z6  3         -      -       -        -          Sigmoid
    """,
    transposed=True,
    amendments=tuple(
        Amendment(row, column, printed, built, _LAST)
        for row in ("y6", "z6")
        for column, printed, built in (("Channels", "4", "3"), ("Width", "2", "4"), ("Stride", "1", "2"))
    ),
)

DISCRIMINATOR = Table(
    "Table 10. SVHN: D(x, y, z)",
    """
    Name  Input         Channels  Width  Pooling  Dropout  BatchNorm  Activation
    x     -             1         -      -        -        -          -
    y     -             k         -      -        -        -          -
    z     -             64        -      -        -        -          -
    x1    x             96        3      -        -        -          Leak 0.2
    x2    x1            96        3      -        -        -          Leak 0.2
    x3    x2            96        3      Max2     -        -          Leak 0.2
    x4    x3            192       3      -        0.1      -          Leak 0.2
    x5    x4            192       3      -        -        -          Leak 0.2
    x6    x5            192       3      Max2     -        -          Leak 0.2
    x7    x6            384       3      -        0.1      -          Leak 0.2
    x8    x7            192       1      -        -        -          Leak 0.2
    x9    x8            96        1      Avg6     -        -          Leak 0.2
    y1    y             96        1      1        -        -          Leak 0.2
    y2    y1            96        1      1        0.1      -          Leak 0.2
    z1    z             96        1      1        -        -          Leak 0.2
    z2    z1            96        1      1        0.1      -          Leak 0.2
    p0    x5 | y2 | z2  288       -      -        -        -          -
    p1    p0            288       1      1        0.1      -          Leak 0.2
    p2    p1            288       1      1        0.1      -          Leak 0.2
    p     p1            1         1      1        0.1      -          -
    """,
    sizes={"x": 32},
    amendments=(
        _RGB,
        *_SAME,
        Amendment("p0", "Input", "x5 | y2 | z2", "x9 | y2 | z2", "96 + 96 + 96 = 288; x5 is what Table 6 reads"),
        Amendment("p", "Input", "p1", "p2", "as printed p2 would feed nothing; ALI chains all three layers"),
    ),
)
