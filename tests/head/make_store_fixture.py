"""Make a store as today's code writes it, for later code to read: `python -m tests.head.make_store_fixture`.

To be run once for each version of the schema, before that is published; the zip is never made anew.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import zipfile
from pathlib import Path

from burla.head.records import SCHEMA
from tests.head.survey import write_samples

STORES = Path(__file__).parent / "stores"


def main() -> int:
    target = STORES / f"schema-{SCHEMA}.zip"
    if target.exists():
        print(f"{target} is there already: it is what heads in use have written", file=sys.stderr)
        return 1
    STORES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        asyncio.run(write_samples(store))
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(store.rglob("*")):
                if path.is_file() and path.name != "reserve":
                    archive.write(path, path.relative_to(folder))
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
