"""Try the breakages of MUTATIONS.md: `python tests/mutations.py [--sample 10] [--seed 1] [WORD]`.

Each row is applied to a copy of the checkout, its test is run there, and has to fail. WORD keeps the rows that hold it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("MUTATIONS.md")
ROW = re.compile(r"\| (?P<promise>.+?) \| (?P<file>\S+) \| ``(?P<old>.+?)`` → ``(?P<new>.*?)`` \| (?P<test>.+?) \|$")
IGNORED = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis")


@dataclass(frozen=True)
class Mutation:
    """One row: in `file`, `old` becomes `new`, and `test` fails."""

    promise: str
    file: str
    old: str
    new: str
    test: str

    def apply(self, root: Path) -> None:
        """Break the copy at `root`. Raises ValueError unless `old` is there exactly once."""
        path = root / self.file
        source = path.read_text()
        if source.count(self.old) != 1:
            raise ValueError(f"{self.file} has {self.old!r} {source.count(self.old)} times")
        path.write_text(source.replace(self.old, self.new))


def rows() -> list[Mutation]:
    """Return the rows of the table."""
    found = (ROW.match(line) for line in TABLE.read_text().splitlines())
    return [Mutation(**row.groupdict()) for row in found if row]


def fails(mutation: Mutation) -> bool:
    """Whether the test fails on the breakage."""
    with tempfile.TemporaryDirectory(prefix="burla-mutation-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=IGNORED)
        mutation.apply(copy)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "--timeout",
            "60",
            mutation.test,
        ]
        environ = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run(command, cwd=copy, env=environ, capture_output=True, text=True, check=False)
        if run.returncode not in (0, 1):
            raise ValueError(f"pytest could not run {mutation.test}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        return run.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("word", nargs="?", default="")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    chosen = [row for row in rows() if options.word in str(row)]
    if options.sample is not None:
        chosen = random.Random(options.seed).sample(chosen, min(options.sample, len(chosen)))
    survived = 0
    for row in chosen:
        began = time.monotonic()
        try:
            verdict = "fails" if fails(row) else "SURVIVED"
        except ValueError as error:
            verdict = f"INVALID: {error}"
        survived += verdict != "fails"
        print(f"{verdict}\t{time.monotonic() - began:.0f} s\t{row.file}\t{row.old} → {row.new}\t{row.test}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} breakages were noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
