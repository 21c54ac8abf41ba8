"""Put cohort tables together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from fewbeats.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Join:
    """Put cohort tables together, as for a pool of several sources; column source says which a row is of."""

    cohorts: tyro.conf.Positional[tuple[Path, ...]]
    """Tables, whose names without suffix become the sources'."""
    out: Path
    """Table to write, .csv or .parquet."""
    apart: bool = False
    """Subjects of different tables are different persons whatever their names, which get their source's
    before them."""

    def run(self) -> Path:
        """Join and write; returns the table's path.

        Raises:
            InputError: a table that cannot be used, two of one name, or a scan or a split that does not go
                with another table's.
        """
        from fewbeats.data.cohort import join_cohorts, read_cohort, write_cohort

        sources = [path.stem for path in self.cohorts]
        if not sources:
            raise InputError("no table to join; name one or more before --out")
        if len(set(sources)) < len(sources):
            raise InputError("two tables of one name; rename one, as names become those of sources")
        tables = {path.stem: read_cohort(path) for path in self.cohorts}
        joined = join_cohorts(tables, apart=self.apart)
        write_cohort(joined, self.out)
        print(f"{self.out}: {len(joined)} scans of {joined['subject'].n_unique()} subjects")
        return self.out
