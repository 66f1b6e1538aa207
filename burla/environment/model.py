"""What a function needs on a node that does not share the client's disk: a document that the head only passes on."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from burla.protocol import Blob


def normalized(name: str) -> str:
    """Return the name of a distribution as everybody compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True, slots=True)
class Source:
    """Modules of one folder of the client, `root`, as a zip file."""

    content: Blob
    root: str


@dataclass(frozen=True, slots=True)
class Distribution:
    """One that is installed at the client.

    `needed`: the function or its modules import it. `modules`: what it is imported as. Where it comes from: `content`,
    a wheel of this file name; else `url`, with a commit or hash; else the index of the node. There, `marks` say whether
    it is the same project: beginnings of hashes of some of its files.
    """

    name: str
    version: str
    needed: bool = False
    modules: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    url: str | None = None
    file_name: str | None = None
    content: Blob | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """See the module. `python`: as in `NodeOffer`; `extras`: requirements that the user has named, needed all."""

    python: str
    cwd: str
    sources: tuple[Source, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    extras: tuple[str, ...] = ()

    @property
    def contents(self) -> tuple[Blob, ...]:
        """All files that have to be on the head."""
        wheels = (one.content for one in self.distributions)
        return tuple(blob for blob in (*(one.content for one in self.sources), *wheels) if blob is not None)


def dumps(environment: Environment) -> str:
    """Return an environment as a document."""
    return json.dumps(asdict(environment), sort_keys=True)


def loads(document: str) -> Environment:
    """Return the environment of a document."""
    fields = json.loads(document)
    return Environment(
        python=fields["python"],
        cwd=fields["cwd"],
        sources=tuple(Source(**one | {"content": Blob(**one["content"])}) for one in fields["sources"]),
        distributions=tuple(_distribution(one) for one in fields["distributions"]),
        extras=tuple(fields["extras"]),
    )


def _distribution(fields: dict) -> Distribution:
    content = fields["content"]
    return Distribution(
        **fields
        | {
            "modules": tuple(fields["modules"]),
            "marks": tuple(fields["marks"]),
            "content": None if content is None else Blob(**content),
        }
    )
