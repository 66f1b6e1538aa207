"""The options of `%%burla`: what is given, and what is said about mistakes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import burla.options
from burla_jupyter import options
from burla_jupyter.errors import Refused
from burla_jupyter.options import Options, complete


@options.declare
def magic(line: str) -> None:
    """Run it."""


def parse(text: str, is_map: bool = True, **notebook: Any) -> Options:
    return options.parse(magic.parser, text, notebook, is_map)


def test_the_gpus_that_are_offered_are_those_that_calls_may_ask_for():
    assert list(options.GPUS) == list(burla.options.GPUS)


def test_without_options_nothing_is_asked_for():
    assert parse("") == Options({}, False, True, None, (), False, False)


def test_every_option_has_its_meaning():
    given = parse(
        "-o out --func-cpu 2 --func-ram 8 --func-gpu A100 --image img --grow --max-parallelism 3 --detach "
        "--no-spinner --ship a,b --dry-run",
        a=1,
        b=2,
    )
    resources = {"func_cpu": 2, "func_ram": 8, "func_gpu": "A100", "image": "img", "grow": True, "max_parallelism": 3}
    assert given == Options(resources, True, False, ("out",), ("a", "b"), False, True)
    assert parse("--local").local and parse("--func-ram dynamic").resources == {"func_ram": "dynamic"}


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("--image a", "a"),
        ("--image=a", "a"),
        ("--image 'a for b'", "a for b"),
        ('--image "it\'s"', "it's"),
        ("--image=--a", "--a"),
        ("--image {name}:{tag + 1}", "img:3"),
        ("--image $name-x", "img-x"),
        ("--image '{name} $tag'", "img 2"),
        ("--image {{name}}", "{name}"),
        ("--image=' {name} '", " img "),
    ],
)
def test_values_are_unquoted_and_expanded(text: str, image: str):
    assert parse(text, name="img", tag=2).resources == {"image": image}


@pytest.mark.parametrize("text", ["-o a", "-oa", "-o=a", "--out a", "--out=a", "-o ' a '", "-o {name}"])
def test_the_name_for_the_results_can_be_given_in_many_ways(text: str):
    assert parse(text, name="a").out == ("a",)


def test_a_cell_that_runs_once_can_bring_back_several_names():
    assert parse("-o a,b", is_map=False).out == ("a", "b") and parse("-o 'a, b'", is_map=False).out == ("a", "b")


@pytest.mark.parametrize(
    ("text", "is_map", "says"),
    [
        ("--func-cp 2", True, "no option --func-cp. Did you mean --func-cpu?"),
        ("--func_ram=2", True, "Did you mean --func-ram?"),
        ("--spinner", True, "Did you mean --no-spinner?"),
        ("--xyz", True, "There are: -o, --grow"),
        ("-x", True, "no option -x"),
        ("--help", True, "%%burla? shows"),
        ("xs", True, "'xs' is no option. To run the cell for every element: %%burla for x in xs"),
        ("--func-cpu", True, "--func-cpu N: the value is missing"),
        ("--func-cpu --grow", True, "--func-cpu N: the value is missing"),
        ("-o", True, "--out NAME: the value is missing"),
        ("--func-cpu two", True, "--func-cpu two: CPUs reserved for each call (1), an integer"),
        ("--func-ram 1.5", True, "--func-ram 1.5"),
        ("--max-parallelism x", True, "--max-parallelism x"),
        ("--grow=1", True, "--grow has no value"),
        ("-o 1a", True, "'1a' is no name"),
        ("-o class", True, "'class' is no name"),
        ("-o ,", True, "the name of a variable is missing"),
        ("-o a,b", True, "the results of a map go into one variable"),
        ("-o a,b --detach", False, "of a job go into one variable"),
        ("--ship nowhere", True, "the notebook has no variable"),
        ("--local --detach", True, "contradict"),
        ("--image 'a", True, "No closing quotation"),
        ("--image {nowhere}", True, "--image {nowhere}: NameError"),
        ("--image $nowhere", True, "NameError"),
        ("--image {1/0}", True, "ZeroDivisionError"),
    ],
)
def test_a_mistake_is_explained(text: str, is_map: bool, says: str):
    with pytest.raises(Refused) as caught:
        parse(text, is_map)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("x in xs --detach", "--detach"),
        ("x in xs --func-cpu=2", "--func-cpu=2"),
        ("x in xs if x --func-ram 4", "--func-ram"),
        ("x in xs -o out", "-o"),
        ("x in xs -o out # why", "-o"),
        ("x in range(n -o)", None),
        ("x in [n -o if o else n]", None),
        ("x in ['--detach', ' -o out', \"--grow\"]", None),
        ("x in xs - -grow", None),
        ("x in xs # not with --grow", None),
    ],
)
def test_options_after_the_loop_are_pointed_out(text: str, option: str | None):
    if option is None:
        options.refuse_after_for(text)
    else:
        with pytest.raises(Refused, match=f"{option}: options stand before the `for`: %%burla {option} … for x in xs"):
            options.refuse_after_for(text)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("%%burla --func", ["--func-cpu", "--func-ram", "--func-gpu"]),
        ("%%burla --d", ["--detach", "--dry-run"]),
        ("%%burla -o out --l", ["--local"]),
        ("%%burla f", ["for"]),
        ("%%burla --func-gpu ", list(options.GPUS)),
        ("%%burla --func-gpu H", list(options.GPUS)),  # IPython takes those that fit
        ("%%burla --func-ram d", ["dynamic"]),
        ("%%burla -o n", []),
        ("%%burla for x in f", []),
        ("%%burla -o a for --d", []),
    ],
)
def test_completion_offers_what_may_stand_there(line: str, offered: list[str]):
    event = SimpleNamespace(line=line, symbol=line.rpartition(" ")[2], command="%%burla", text_until_cursor=line)
    assert complete(event) == offered


def test_help_names_every_option():
    help_text = magic.parser.format_help()
    for name in ("-o", *options.FLAGS, *options.VALUES):
        assert name in help_text
