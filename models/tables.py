"""Layer tables as the paper prints them: text in the paper's own columns -> typed rows.

Cells stand two spaces apart. Every malformed row is an error that names the row. A departure from the print is an
`Amendment`, which carries its reason. `models.layers` makes networks of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

COLUMNS = ("Name", "Input", "Channels", "Width", "Stride", "Dropout", "BatchNorm", "Activation")
ACTIVATIONS = ("ReLU", "Tanh", "Sigmoid", "Softmax")  # without a parameter


class TableError(ValueError):
    """A malformed layer table; the message names the table and the row."""


@dataclass(frozen=True)
class Amendment:
    """A cell that is built otherwise than printed, and why."""

    row: str
    column: str
    printed: str
    built: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One line of a layer table.

    Attributes:
        inputs: names of earlier rows; empty for an input of the network; ("zeros",) for a constant 0.
        join: "+" for a sum, "|" for a concatenation along channels.
        width: kernel width; 0 for a row without weights.
        padding: zeros around the row's input; a width such as "3 same" keeps height and width.
        pool: "Max2", "Avg6" and the like, or "".
        dropout: probability with which an element of the layer's input is dropped.
        activation: "", "ExpN", "Leak" (with `slope`), or a key of ACTIVATIONS.
    """

    name: str
    inputs: tuple[str, ...]
    join: str
    channels: int
    width: int
    stride: int
    pool: str
    dropout: float
    batchnorm: bool
    activation: str
    slope: float
    padding: int = 0


@dataclass(frozen=True)
class Table:
    """A layer table of the paper.

    Attributes:
        title: as in the paper, with its number.
        text: the table in the paper's columns.
        sizes: height (= width) of each input; 1 where absent.
        transposed: the convolutions are transposed (a decoder).
        amendments: the departures, applied when the rows are read.
    """

    title: str
    text: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    transposed: bool = False
    amendments: tuple[Amendment, ...] = ()

    def rows(self, k: int) -> list[Row]:
        """The typed rows, amended; `k` is the number of categories. Raises TableError."""
        if k < 1:
            raise TableError(f"{self.title}: k must be at least 1, got {k}")
        header, *body = [re.split(r"\s{2,}|\t", line) for line in self.lines()] or [[]]
        if tuple("Stride" if name == "Pooling" else name for name in header) != COLUMNS:
            raise TableError(f"{self.title}: the columns are {header}, expected {list(COLUMNS)}")
        cells = [self._amended(row) for row in body]
        unknown = {a.row for a in self.amendments} - {row["Name"] for row in cells}
        if unknown:
            raise TableError(f"{self.title}: amendments name rows that do not exist: {sorted(unknown)}")
        rows = [_row(self.title, row, k) for row in cells]
        _check(self.title, rows)
        return rows

    def departures(self) -> list[str]:
        """The amendments as footnotes, one for each reason."""
        reasons = dict.fromkeys(amendment.reason for amendment in self.amendments)
        return [self._footnote(reason) for reason in reasons]

    def _footnote(self, reason: str) -> str:
        meant = [amendment for amendment in self.amendments if amendment.reason == reason]
        rows = ", ".join(dict.fromkeys(amendment.row for amendment in meant))
        cells = ", ".join(dict.fromkeys(f"{a.column} {a.built!r} for the printed {a.printed!r}" for a in meant))
        return f"{self.title.partition('.')[0]}, {rows}: {cells}: {reason}."

    def lines(self) -> list[str]:
        """The printed lines, header first, without indentation and blank lines."""
        return [line.strip() for line in self.text.splitlines() if line.strip()]

    def _amended(self, cells: list[str]) -> dict[str, str]:
        """One line by column, with the amendments of that row applied."""
        if len(cells) != len(COLUMNS):
            raise TableError(f"{self.title}: row {cells[0]!r} has {len(cells)} cells, expected {len(COLUMNS)}: {cells}")
        row = dict(zip(COLUMNS, cells, strict=True))
        for amendment in self.amendments:
            if amendment.row != cells[0]:
                continue
            if row.get(amendment.column) != amendment.printed:
                raise TableError(
                    f"{self.title}: row {cells[0]!r}, column {amendment.column!r} prints "
                    f"{row.get(amendment.column)!r}, the amendment expects {amendment.printed!r}"
                )
            row[amendment.column] = amendment.built
        return row


class WithoutY(Table):
    """AMM's layer table with its y-branch cut out: `WithoutY(**vars(table))`.

    The rows whose names start with y go, and their terms in sums and concatenations with them. Where that would leave a
    row with nothing to read (the plane's decoder, whose x reads y1 + z1), only the rows that depend on y alone go.
    """

    def rows(self, k: int) -> list[Row]:
        """The typed rows, amended, of the z-branch."""
        rows = super().rows(k)
        cut = {row.name for row in rows if row.name.startswith("y")}
        if any(row.inputs and row.name not in cut and cut.issuperset(row.inputs) for row in rows):
            cut = {"y"}
            for row in rows:
                if row.inputs and cut.issuperset(row.inputs):
                    cut.add(row.name)
        channels = {row.name: 0 if row.name in cut else row.channels for row in rows}
        kept = []
        for row in rows:
            inputs = tuple(name for name in row.inputs if name not in cut)
            joined = row.join == "|" and not row.width
            width = sum(channels[name] for name in row.inputs) if joined else row.channels
            if row.name not in cut:
                kept.append(replace(row, inputs=inputs, channels=width))
        return kept


class GivenZ(Table):
    """An encoder's layer table with y inferred from the z that was drawn: `GivenZ(**vars(table))`.

    Eq. 7 draws y from q(y | x, z), where Tables 3 and 7 give y the features of the z-branch. Here the last sum of both branches
    takes the drawn z in their place, through a layer zy without activation, and z's rows come before it.
    """

    def rows(self, k: int) -> list[Row]:
        """The typed rows, amended, in their new order."""
        rows = super().rows(k)
        last = self._last(rows)
        given = replace(last, inputs=tuple("zy" if name.startswith("z") else name for name in last.inputs))
        zy = Row("zy", ("z",), "+", last.channels, 1, 1, "", 0.0, False, "", 0.0)
        at = rows.index(last)
        after = [given if row is last else row for row in rows[at:]]
        of_z = [row for row in after if row.name.startswith("z")]
        return [*rows[:at], *of_z, zy, *(row for row in after if row not in of_z)]

    def departures(self) -> list[str]:
        """Those of the table, and this one."""
        name, place = self._last(super().rows(2)).name, self.title.partition(".")[0]
        return [
            *super().departures(),
            f"{place}, {name}: reads the drawn z, through a layer zy, for the z-branch: Eq. 7.",
        ]

    def _last(self, rows: list[Row]) -> Row:
        """The last row of y that reads the z-branch."""
        found = [row for row in rows if row.name[0] == "y" and any(name[0] == "z" for name in row.inputs)]
        if found[-1].pool:
            raise TableError(f"{self.title}: row {found[-1].name!r} joins maps that are pooled later; z is no map")
        return found[-1]


def _row(title: str, cells: dict[str, str], k: int) -> Row:
    """One typed row from its cells."""

    def read(column: str, pattern: str, expected: str) -> re.Match[str]:
        match = re.fullmatch(pattern, cells[column])
        if match is None:
            raise TableError(f"{title}: row {cells['Name']!r}, column {column}: {cells[column]!r} is not {expected}")
        return match

    name = read("Name", r"\w+", "a name").group()
    given = read("Input", r"-|\w+(?: \+ \w+)*|\w+(?: \| \w+)*", "'-', a name, 'a + b' or 'a | b'").group()
    channels = read("Channels", r"k|[1-9]\d*", "a number of channels or k").group()
    width = read("Width", r"-|([1-9]\d*)( same)?", "a width, 'WIDTH same' or '-'")
    stride = read("Stride", r"-|[1-9]\d*|(?:Max|Avg)[1-9]\d*", "a stride, MaxN, AvgN or '-'").group()
    dropout = read("Dropout", r"-|0\.\d+", "a probability or '-'").group()
    batchnorm = read("BatchNorm", r"-|yes", "'yes' or '-'").group()
    kinds = "|".join(ACTIVATIONS)
    activation = read("Activation", rf"-|Leak (0\.\d+)|ExpN|{kinds}", f"'-', 'Leak s', ExpN, {kinds}")
    return Row(
        name=name,
        inputs=() if given == "-" else tuple(re.split(r" [+|] ", given)),
        join="|" if "|" in given else "+",
        channels=k if channels == "k" else int(channels),
        width=int(width.group(1) or 0),
        stride=int(stride) if stride.isdigit() else 1,
        pool=stride if stride[:3] in ("Max", "Avg") else "",
        dropout=0.0 if dropout == "-" else float(dropout),
        batchnorm=batchnorm == "yes",
        activation=activation.group().split()[0].replace("-", ""),
        slope=float(activation.group(1) or 0),
        padding=int(width.group(1)) // 2 if width.group(2) else 0,
    )


def _check(title: str, rows: list[Row]) -> None:
    """Names are defined once and before use; channels agree where no weights could change them."""
    channels: dict[str, int] = {}
    for row in rows:
        problem = _problem(row, channels)
        if problem:
            raise TableError(f"{title}: row {row.name!r} {problem}")
        channels[row.name] = row.channels


def _problem(row: Row, channels: dict[str, int]) -> str:
    """What is wrong with a row after rows with these channels, or nothing."""
    if row.name in channels or row.name == "zeros":
        return "is defined twice or takes a reserved name"
    if not row.inputs:
        bare = Row(row.name, (), row.join, row.channels, 0, 1, "", 0.0, False, "", 0.0)
        return "" if row == bare else "is an input and can have nothing but channels"
    if row.inputs == ("zeros",):
        return "reads zeros, so it can have no width" if row.width else ""
    missing = [name for name in row.inputs if name not in channels]
    if missing:
        return f"reads {missing}, which no earlier row defines"
    if row.padding and (row.width % 2 == 0 or row.stride != 1):
        return "cannot keep its size: that takes an odd width and stride 1"
    if not row.width and (row.dropout or row.stride != 1):
        return "has no width, so no stride and no dropout"
    got = [channels[name] for name in row.inputs]
    agree = row.join == "|" or len(set(got)) == 1
    joined = sum(got) if row.join == "|" else got[0]
    return (
        "" if agree and (row.width or joined == row.channels) else f"has {row.channels} channels, its inputs have {got}"
    )


def amend(table: Table, *amendments: Amendment) -> Table:
    """The same table with further amendments."""
    return replace(table, amendments=table.amendments + amendments)


def leaky_y(decoder: Table) -> Table:
    """A decoder whose sums y1a, y2a, ... have the activation of z1a, z2a, ..., which Tables 5 and 9 leave out.

    As printed, y only adds one picture per category to the pixels' logits, whatever z is.
    """
    bare = [row.name for row in decoder.rows(2) if re.fullmatch(r"y\d+a", row.name) and not row.activation]
    if not bare:
        raise TableError(f"{decoder.title}: no sum of y is without an activation")
    reason = "so that what y draws depends on z"
    return amend(decoder, *(Amendment(name, "Activation", "-", "Leak 0.2", reason) for name in bare))


def without_z(encoder: Table, layers: int) -> Table:
    """An encoder as Eq. 15 has it: its sums y1a, y2a, ... up to that of the last of its layers read no z."""
    cells = ((f"y{i}a", "Input", f"y{i} + z{i}", f"y{i}") for i in range(1, layers + 1))
    return amend(encoder, *(Amendment(*cell, "Eq. 15: y is inferred without z") for cell in cells))
