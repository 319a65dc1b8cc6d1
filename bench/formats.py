"""The parts of a table as Markdown, LaTeX and CSV, and a text for a terminal that knows few signs."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
LATEX |= {character: "\\" + character for character in "&%$#_{}"}
SIGNS: dict[str, str | int | None] = {
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "²": "$^2$",
    "ŷ": r"$\hat{y}$",
    "|": "$|$",
    "–": "--",
}
SIGNS |= {"α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "ε": r"$\epsilon$", "λ": r"$\lambda$", "μ": r"$\mu$"}
SIGNS |= {"π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "φ": r"$\phi$", "Σ": r"$\Sigma$"}
MARK = r" \[([1-9]\d*(?:, [1-9]\d*)*)\](?= *(?:&|\\\\))"  # of footnotes, which end a cell; [0, 1] is an interval
OTHERS = "Other scores on the test set, at the last step unless said otherwise, mean ± std."


@dataclass(frozen=True)
class Parts:
    """What a table says, before it is set in any format: the two tables as rows by title, and the notes in order."""

    title: str
    heading: str
    main: list[dict[str, str]]
    others: list[dict[str, str]]
    notes: list[str]


def markdown(found: Parts) -> str:
    """A section with both tables and the numbered notes."""
    first, second = (github(rows) for rows in (found.main, found.others))
    items = "\n".join(f"{number}. {text}" for number, text in enumerate(found.notes, 1))
    texts = [f"## {found.title}", found.heading, first, second and OTHERS, second, items]
    return "\n\n".join(text for text in texts if text) + "\n"


def github(rows: Sequence[dict[str, str]]) -> str:
    """The rows as a table of GitHub's Markdown, where a bar parts columns unless it is escaped."""
    escaped = [{title.replace("|", r"\|"): text.replace("|", r"\|") for title, text in row.items()} for row in rows]
    return grid(escaped, "github")


def grid(rows: Sequence[dict[str, str]], style: str) -> str:
    """The rows under their keys in a style of `tabulate`; nothing without rows."""
    cells = [list(row.values()) for row in rows]
    return tabulate(cells, list(rows[0]), tablefmt=style, disable_numparse=True) if rows else ""


def latex(found: Parts) -> str:
    """A paragraph with both tables and the notes as a list; needs booktabs."""
    first, second = (_symbols(grid(rows, "latex_booktabs")) for rows in (found.main, found.others))
    first = re.sub(MARK, r"$^{\1}$", first)
    items = "\n".join(rf"\item {_tex(text)}" for text in found.notes)
    listed = f"\\begin{{enumerate}}\n{items}\n\\end{{enumerate}}" if items else ""
    heading = rf"\paragraph{{{_tex(found.title)}}} {_tex(found.heading)}"
    return "\n\n".join(text for text in (heading, first, second and _tex(OTHERS), second, listed) if text) + "\n"


def _tex(text: str) -> str:
    return _symbols("".join(LATEX.get(character, character) for character in text))


def _symbols(text: str) -> str:
    """Signs that LaTeX spells otherwise."""
    return text.translate(str.maketrans(SIGNS))


def comma_separated(rows: Sequence[dict[str, object]]) -> str:
    """The rows under their keys, which are those of the first."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def encodable(text: str, encoding: str | None) -> str:
    """`text` for a terminal of this encoding: in plain ASCII signs where it knows no others."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.replace("±", "+/-").replace("–", "-")
        return plain.encode(encoding, "replace").decode(encoding)
    return text
