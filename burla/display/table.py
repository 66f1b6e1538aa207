"""Tables, as text and as static HTML."""

from __future__ import annotations

import html as _html
from collections.abc import Collection, Sequence


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return a table with a heading; the columns named in `right` are aligned there."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        ).rstrip()
        for row in [columns, *rows]
    )


def html_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return the same as HTML."""
    align = ["right" if name in right else "left" for name in columns]

    def row(tag: str, cells: Sequence[str]) -> str:
        inner = (
            f'<{tag} style="text-align:{side};padding:2px 8px">{_html.escape(cell)}</{tag}>'
            for cell, side in zip(cells, align, strict=True)
        )
        return f"<tr>{''.join(inner)}</tr>"

    return f"<table>{row('th', columns)}{''.join(row('td', one) for one in rows)}</table>"
