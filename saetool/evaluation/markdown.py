"""Tables as Markdown."""

from collections.abc import Sequence
from typing import Any


def render(title: str, tables: Sequence[dict[str, Any]], concerns: Sequence[str] = ()) -> str:
    """Return a page: a heading, what to know before all else, then each table under its title with its note."""
    parts = [f"# {title}", *(f"**Note:** {_escaped(concern)}" for concern in concerns)]
    for table in tables:
        parts += [f"## {table['title']}", table["note"]]
        if table["rows"]:
            parts.append(markdown_table(table["columns"], table["rows"]))
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: first column to the left, the others to the right, bars in texts escaped."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    lines = [[_escaped(cell) for cell in columns], rule, *[[_escaped(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
