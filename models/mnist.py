"""Tables 3-6: the networks for MNIST, 28x28, as printed.

Table 6 is garbled in the paper's text; it is restored here from its columns, which are readable one by one.
Table 3 draws factorisation (7) in part: y reads x and features of the z-branch, not the z that is drawn, so given x the two
are independent, as in Eq. 15. `ENCODER_15` cuts these features too; `ENCODER_Y` and `ENCODER_Z` are ours, the same layers
wired as Eq. 6 says.
"""

from models.tables import Amendment, Table, without_z

ENCODER = Table(
    "Table 3. MNIST: Gz(x) Gy(x, Gz(x))",
    """
    Name  Input     Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -         1         -      -       -        -          -
    y1    x         32        2      1       0.2      -          -
    z1    x         32        2      1       0.2      -          -
    y1a   y1 + z1   32        -      -       -        yes        Leak 0.2
    z1a   z1        32        -      -       -        yes        Leak 0.2
    y2    y1a       32        3      2       0.2      -          -
    z2    z1a       32        3      2       0.2      -          -
    y2a   y2 + z2   32        -      -       -        yes        Leak 0.2
    z2a   z2        32        -      -       -        yes        Leak 0.2
    y3    y2a       64        3      2       0.2      -          -
    z3    z2a       64        3      2       0.2      -          -
    y3a   y3 + z3   64        -      -       -        yes        Leak 0.2
    z3a   z3        64        -      -       -        yes        Leak 0.2
    y4    y3a       64        3      1       0.2      -          -
    z4    z3a       64        3      1       0.2      -          -
    y4a   y4 + z4   64        -      -       -        yes        Leak 0.2
    z4a   z4        64        -      -       -        yes        Leak 0.2
    y5    y4a       128       4      1       0.2      -          -
    z5    z4a       128       4      1       0.2      -          -
    y5a   y5 + z5   128       -      -       -        yes        Leak 0.2
    z5a   z5        128       -      -       -        yes        Leak 0.2
    yμ    y5a       k         1      1       -        -          -
    yσ    y5a       k         1      1       -        -          ExpN
    y     yμ + yσ   k         -      -       -        -          Softmax
    zμ    z5a       64        1      1       -        -          -
    zσ    z5a       64        1      1       -        -          ExpN
    z     zμ + zσ   64        -      -       -        -          -
    """,
    sizes={"x": 28},
)

ENCODER_15 = without_z(ENCODER, 5)

ENCODER_Y = Table(
    "Ours, the y-branch of Table 3: Gy(x)",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -        1         -      -       -        -          -
    y1    x        32        2      1       0.2      yes        Leak 0.2
    y2    y1       32        3      2       0.2      yes        Leak 0.2
    y3    y2       64        3      2       0.2      yes        Leak 0.2
    y4    y3       64        3      1       0.2      yes        Leak 0.2
    y5    y4       128       4      1       0.2      yes        Leak 0.2
    yμ    y5       k         1      1       -        -          -
    yσ    y5       k         1      1       -        -          ExpN
    y     yμ + yσ  k         -      -       -        -          Softmax
    """,
    sizes={"x": 28},
)

ENCODER_Z = Table(
    "Ours, the z-branch of Table 3 with y embedded: Gz(x, y)",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -        1         -      -       -        -          -
    y     -        k         -      -       -        -          -
    z1    x        32        2      1       0.2      yes        Leak 0.2
    z2    z1       32        3      2       0.2      yes        Leak 0.2
    z3    z2       64        3      2       0.2      yes        Leak 0.2
    z4    z3       64        3      1       0.2      yes        Leak 0.2
    z5    z4       128       4      1       0.2      -          -
    zy    y        128       1      1       -        -          -
    z5a   z5 + zy  128       -      -       -        yes        Leak 0.2
    zμ    z5a      64        1      1       -        -          -
    zσ    z5a      64        1      1       -        -          ExpN
    z     zμ + zσ  64        -      -       -        -          -
    """,
    sizes={"x": 28},
)

PRIOR = Table(
    "Table 4. MNIST: Gz(y)",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -        k         -      -       -        -          -
    z1    y        64        1      1       -        yes        Leak 0.2
    z2    z1       64        1      1       0.2      yes        Leak 0.2
    zμ    z2       64        1      1       -        -          -
    zσ    zeros    64        -      -       -        -          ExpN
    z     zμ + zσ  64        -      -       -        -          -
    """,
)

PRIOR_VARIANCE = Table(
    "Table 8, which the paper prints for SVHN: Gz(y) with a learned variance",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -        k         -      -       -        -          -
    zμ    y        64        1      1       -        -          -
    zσ    y        64        1      1       -        -          ExpN
    z     zμ + zσ  64        -      -       -        -          -
    """,
)

DECODER = Table(
    "Table 5. MNIST: Gx(y, Gz(y))",
    """
    Name  Input    Channels  Width  Stride  Dropout  BatchNorm  Activation
    y     -        k         -      -       -        -          -
    z     -        64        -      -       -        -          -
    y1    y        128       1      1       -        -          -
    z1    z        128       1      1       -        -          -
    y1a   y1 + z1  128       -      -       -        yes        -
    z1a   z1       128       -      -       -        yes        Leak 0.2
    y2    y1a      64        4      1       0.2      -          -
    z2    z1a      64        4      1       0.2      -          -
    y2a   y2 + z2  64        -      -       -        yes        -
    z2a   z2       64        -      -       -        yes        Leak 0.2
    y3    y2a      64        3      1       0.2      -          -
    z3    z2a      64        3      1       0.2      -          -
    y3a   y3 + z3  64        -      -       -        yes        -
    z3a   z3       64        -      -       -        yes        Leak 0.2
    y4    y3a      32        3      2       0.2      -          -
    z4    z3a      32        3      2       0.2      -          -
    y4a   y4 + z4  32        -      -       -        yes        -
    z4a   z4       32        -      -       -        yes        Leak 0.2
    y5    y4a      32        3      2       0.2      -          -
    z5    z4a      32        3      2       0.2      -          -
    y5a   y5 + z5  32        -      -       -        yes        -
    z5a   z5       32        -      -       -        yes        Leak 0.2
    y6    y5a      1         2      1       0.2      -          -
    z6    z5a      1         2      1       0.2      -          -
    x     y6 + z6  1         -      -       -        -          Sigmoid
    """,
    transposed=True,
)

DISCRIMINATOR = Table(
    "Table 6. MNIST: D(x, y, z)",
    """
    Name  Input         Channels  Width  Stride  Dropout  BatchNorm  Activation
    x     -             1         -      -       -        -          -
    y     -             k         -      -       -        -          -
    z     -             64        -      -       -        -          -
    x1    x             32        2      1       -        -          Leak 0.2
    x2    x1            32        3      2       0.2      -          Leak 0.2
    x3    x2            64        3      2       0.2      -          Leak 0.2
    x4    x3            64        3      1       0.2      -          Leak 0.2
    x5    x4            128       4      1       0.2      -          Leak 0.2
    y1    y             64        1      1       -        -          Leak 0.2
    y2    y1            64        1      1       0.2      -          Leak 0.2
    z1    z             64        1      1       -        -          Leak 0.2
    z2    z1            64        1      1       0.2      -          Leak 0.2
    p0    x5 | y2 | z2  256       -      -       -        -          -
    p1    p0            256       1      1       0.2      -          Leak 0.2
    p2    p1            256       1      1       0.2      -          Leak 0.2
    p     p1            1         1      1       0.2      -          -
    """,
    sizes={"x": 28},
    amendments=(Amendment("p", "Input", "p1", "p2", "as printed p2 would feed nothing; ALI chains all three layers"),),
)
