"""How dense the code of the search is, beside its limits: `python -m tests.house`.

A code line holds at least one token that is neither a comment nor a docstring. Optuna's Gaussian process sampler, which
is the model for these limits, has 6.3 to 7.7 tokens, 1.7 to 2.8 comprehensions and 8 to 12 comments.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from radon.complexity import cc_visit

ROOT = Path(__file__).parents[1]
SEARCH = ROOT / "varsearch" / "search"

LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

COMPLEXITY = 20
"""The largest cyclomatic complexity of rank C. Radon counts each comprehension as a branch."""


class Density(NamedTuple):
    """Figures of some files: tokens per code line, the other two per 100 code lines."""

    lines: int
    tokens: float
    comprehensions: float
    comments: float


LIMITS = Density(lines=6322, tokens=9.0, comprehensions=4.0, comments=5.0)
"""At most so many lines, tokens and comprehensions; at least so many comments."""


def density(files: Iterable[Path]) -> Density:
    """The figures of these files together; `lines` counts every line of them."""
    lines = code = tokens = comprehensions = comments = 0
    for file in files:
        source = file.read_text()
        tree = ast.parse(source)
        lines += source.count("\n")
        comprehensions += sum(isinstance(node, COMPREHENSIONS) for node in ast.walk(tree))
        documented = docstring_lines(tree)
        occupied: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            comments += token.type == tokenize.COMMENT
            if token.type not in LAYOUT and token.start[0] not in documented:
                tokens += 1
                occupied.update(range(token.start[0], token.end[0] + 1))
        code += len(occupied)
    return Density(lines, tokens / code, 100 * comprehensions / code, 100 * comments / code)


def docstring_lines(tree: ast.AST) -> set[int]:
    """Lines of all docstrings, those of constants included."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        if isinstance(node.value.value, str):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def too_complex(folders: Iterable[str]) -> Iterator[str]:
    """Functions and methods that are more complex than `COMPLEXITY`, with place and figure."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for block in cc_visit(file.read_text()):
                if block.complexity > COMPLEXITY:
                    name = file.relative_to(ROOT)
                    yield f"{name}:{block.lineno} {block.name} {block.complexity}"


def main() -> None:
    """Prints the figures of each room and of the whole search."""
    print(f"{'':<14}{'lines':>8}{'tokens':>9}{'comprehensions':>16}{'comments':>10}")
    rooms = sorted(path for path in SEARCH.iterdir() if path.is_dir() and any(path.glob("*.py")))
    for room in (*rooms, SEARCH):
        print(row(room.name, density(room.rglob("*.py"))))
    print(row("limits", LIMITS))


def row(name: str, found: Density) -> str:
    """One line of the table."""
    figures = f"{found.tokens:>9.1f}{found.comprehensions:>16.1f}{found.comments:>10.1f}"
    return f"{name:<14}{found.lines:>8}{figures}"


if __name__ == "__main__":
    main()
