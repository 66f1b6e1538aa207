"""The options of `%%burla`: what they are, what is wrong with them, and how they are completed."""

from __future__ import annotations

import difflib
import keyword
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from IPython.core.magic_arguments import argument, magic_arguments
from IPython.utils.text import DollarFormatter

from burla_jupyter.cell import WORD, split
from burla_jupyter.errors import Refused

GPUS = ("A100", "A100_40G", "A100_80G", "H100", "H100_80G", "H200", "B200", "L4", "T4", "V100", "any")
FLAGS = {
    "--grow": "boot more machines if the cluster can",
    "--detach": "return at once with the job, which outlives this notebook",
    "--no-spinner": "show what calls print, and nothing else",
    "--local": "run it here: of a map the first input alone",
    "--dry-run": "run nothing: show what would be sent, and the same as plain Python",
}
VALUES = {
    "--func-cpu": ("N", "CPUs reserved for each call (1)"),
    "--func-ram": ("GB", 'GB reserved for each call, or "dynamic": as many calls at once as the CPUs allow'),
    "--func-gpu": ("GPU", f"the GPU that each call has for itself: {', '.join(GPUS)}"),
    "--image": ("IMAGE", "the container image that calls run in"),
    "--max-parallelism": ("N", "the most calls that run at once"),
    "--out": ("NAME", "the variable for the results; of a cell without `for`: the names that come back, a,b"),
    "--ship": ("NAMES", "names that the cell needs though it only has them in strings, a,b"),
}
SHORT = {"-o": "--out"}


@dataclass(frozen=True)
class Options:
    """What the line of a cell asks for. `resources`: arguments of `burla.submit`, those that were given."""

    resources: dict[str, Any]
    detach: bool
    spinner: bool
    out: tuple[str, ...] | None
    ship: tuple[str, ...]
    local: bool
    dry_run: bool


def declare(magic: Callable[..., Any]) -> Any:
    """Give a magic these options, in its help and its parser."""
    for name, (metavar, text) in VALUES.items():
        names = [short for short, long in SHORT.items() if long == name]
        magic = argument(*names, name, metavar=metavar, help=text)(magic)
    for name, text in FLAGS.items():
        magic = argument(name, action="store_true", help=text)(magic)
    return magic_arguments("%%burla")(magic)


def parse(parser: Any, text: str, namespace: Mapping[str, Any], is_map: bool) -> Options:
    """Return the options in `text`, with {name} and $name in their values replaced. Raises Refused."""
    given = parser.parse_args(_words(text, namespace))
    out, ship = _names("-o", given.out), _names("--ship", given.ship) or ()
    single = "of a job" if given.detach else "of a map"
    if out is not None and len(out) > 1 and (is_map or given.detach):
        raise Refused(f"-o {given.out}: the results {single} go into one variable.")
    for name in ship:
        if name not in namespace:
            raise Refused(f"--ship {name}: the notebook has no variable of this name.")
    if given.local and given.detach:
        raise Refused("--local and --detach contradict each other: a call here ends with this notebook.")
    resources = {
        "func_cpu": _number("--func-cpu", given.func_cpu),
        "func_ram": given.func_ram if given.func_ram == "dynamic" else _number("--func-ram", given.func_ram),
        "func_gpu": given.func_gpu,
        "image": given.image,
        "grow": given.grow or None,
        "max_parallelism": _number("--max-parallelism", given.max_parallelism),
    }
    return Options(
        {name: value for name, value in resources.items() if value is not None},
        given.detach,
        not given.no_spinner,
        out,
        ship,
        given.local,
        given.dry_run,
    )


def refuse_after_for(text: str) -> None:
    """Say so if options stand in what comes after `for`. Raises Refused."""
    words = WORD.findall(text.partition(" #")[0])
    for word, following in zip(words, [*words[1:], ""], strict=True):
        subtracted = not following.isidentifier() or keyword.iskeyword(following)  # as in `for x in range(a -o)`
        if word.partition("=")[0] in (*FLAGS, *VALUES) or (word in SHORT and not subtracted):
            raise Refused(f"{word}: options stand before the `for`: %%burla {word} … for {text.split(' -')[0].strip()}")


def _words(text: str, namespace: Mapping[str, Any]) -> list[str]:
    """Return the words of a line, values as `--name=value`, so that one may begin with a dash."""
    try:
        waiting = [_unquoted(word) for word in WORD.findall(text)]
    except ValueError as error:
        raise Refused(f"in the options: {error}. A value with an apostrophe stands in double quotes.") from None
    words: list[str] = []
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if name[:2] in SHORT and not name.startswith("--") and len(name) > 2:
            name, equals, value = name[:2], "=", word[2:].removeprefix("=")
        name = SHORT.get(name, name)
        if name in FLAGS and not equals:
            words.append(name)
        elif name in FLAGS:
            raise Refused(f"{name} has no value.")
        elif name not in VALUES:
            raise Refused(_unknown(word))
        elif equals or (waiting and waiting[0] not in (*FLAGS, *VALUES, *SHORT)):
            words.append(f"{name}={_expanded(name, value if equals else waiting.pop(0), namespace)}")
        else:
            raise Refused(f"{name} {VALUES[name][0]}: the value is missing.")
    return words


def _unquoted(word: str) -> str:
    """Return a word without its quotes. A blank inside of it is in quotes, or in {an expression}."""
    return "".join(shlex.split(word.replace(" ", "\0"))).replace("\0", " ")


def _unknown(word: str) -> str:
    if not word.startswith("-"):
        return f"{word!r} is no option. To run the cell for every element: %%burla for x in xs"
    if word in ("-h", "--help"):
        return "%%burla? shows what there is."
    near = difflib.get_close_matches(word.partition("=")[0].replace("_", "-"), [*FLAGS, *VALUES], 1, 0.5)
    there = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(['-o', *FLAGS, *VALUES])}."
    return f"there is no option {word}. {there}"


def _expanded(option: str, value: str, namespace: Mapping[str, Any]) -> str:
    try:
        return DollarFormatter().vformat(value, (), dict(namespace))
    except Exception as error:
        raise Refused(f"{option} {value}: {type(error).__name__}: {error}") from error


def _number(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise Refused(f"{option} {text}: {VALUES[option][1]}, an integer of at least 1.") from None


def _names(option: str, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise Refused(f"{option} {text}: {name!r} is no name of a variable.")
    if not names:
        raise Refused(f"{option} {text!r}: the name of a variable is missing.")
    return names


def complete(event: SimpleNamespace) -> list[str]:
    """Return what may stand at the cursor: options, or values of the one before it; nothing after `for`."""
    before = event.text_until_cursor.partition("%%burla")[2]
    if split(before) is not None:
        return []
    words = before.split()
    last = words[-1] if words and before.endswith(" ") else words[-2] if len(words) > 1 else ""
    if last in ("--func-gpu", "--func-ram"):
        return list(GPUS) if last == "--func-gpu" else ["dynamic"]
    if last in (*VALUES, *SHORT):
        return []  # names of variables: Python's completion has them
    return [one for one in ("-o", *FLAGS, *VALUES, "for") if one.startswith(event.symbol)]
