"""Write docs/tables.md: every column and tensor of an index, from the declarations that it is written by.

python scripts/tables_page.py
"""

from pathlib import Path

from saetool.features.columns import LABELED, TABLES, TENSORS, WRITTEN, Column

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tables.md"
HEAD = """# The tables of a features artifact

`saetool index` writes Parquet tables and safetensors files that pandas, Polars, DuckDB or anything else can open:

    import duckdb
    duckdb.sql("select latent, max from 'runs/demo/features/latents.parquet' where status = 'ok' order by max desc")

A value that is not defined is null, never NaN. Latents, images and patches count from 0. Activations are in the
autoencoder's own units. The numbers are exact: equal to counting over every token, whatever the size of batches and
shards and the number of processes.
"""
TABLE = """
## Images × latents, patches × latents

`saetool table runs/demo --out maxima.parquet` encodes the store once and writes every pair that fires; with
`--rows patches` every token's. A name that ends in `.npz` gets a scipy CSR array (`--value max`, `sum` or `count` of
images). In Python `saetool.table("runs/demo/features")` returns the array, `saetool.table(features, out="x.parquet")`
writes the file; an autoencoder and a store do as well: `saetool.table(autoencoder, activations)`. The file's own
metadata (`saetool`) say how many rows and latents there are, and the ids of autoencoder and store."""


def rows(columns: tuple[Column, ...]) -> list[str]:
    """Return a table of columns, in Markdown."""
    head = ["| column | type | unit | definition |", "|---|---|---|---|"]
    return head + [f"| {c.name} | {c.type} | {c.unit} | {c.definition} |" for c in columns]


def render() -> str:
    """Return the page."""
    parts = [HEAD]
    for name, columns in TABLES.items():
        parts += [f"\n## {name}\n", *rows(columns)]
        if name == "latents.parquet":
            parts += ["\nFor each label column, in place of `{label}` its name:\n", *rows(LABELED)]
        if name == "images.parquet":
            parts += ["\nThe label columns follow under their own names: strings for categories, doubles for numbers."]
    parts += ["\n## Tensors\n", "| file | tensor | type and shape | definition |", "|---|---|---|---|"]
    parts += ["| " + " | ".join(row) + " |" for row in TENSORS]
    parts += [TABLE]
    for name, columns in WRITTEN.items():
        parts += [f"\n### {name}\n", *rows(columns)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
