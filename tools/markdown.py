"""Tables in Markdown, as the tools print them."""

from collections.abc import Iterable


def row(cells: Iterable[object]) -> str:
    """A line of a table."""
    return f'| {" | ".join(map(str, cells))} |'


def table(header: Iterable[object], sides: str, rows: Iterable[Iterable[object]] = ()) -> str:
    """A table, or without rows the two lines that begin one; `sides` aligns each column: l or r."""
    rule = ['---:' if side == 'r' else '---' for side in sides]
    return '\n'.join(map(row, [header, rule, *rows]))
