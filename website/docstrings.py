"""Docstrings as Markdown: reStructuredText's roles become links, its literal blocks and doctests become code.

A doctest loses its prompts, and what it prints becomes a comment, so that what a reader copies runs.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe

import hyperopt_ftp

ROLE = re.compile(r":(?:class|func|meth):`~?([\w.]+)`")
LITERAL = re.compile(r"::\n(\n(?:(?:    .*)?\n)+)")
RESULT = re.compile(r"^(Returns|Yields):\n((?:    .*\n?)+)", flags=re.M)
DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", flags=re.M)


def link(role: re.Match[str]) -> str:
    """A public name links to its place in the reference, any other is code."""
    name = role[1].removeprefix("hyperopt_ftp.")
    return f"[`{name}`][hyperopt_ftp.{name}]" if hasattr(hyperopt_ftp, name) else f"`{role[1]}`"


def fence(language: str, code: str) -> str:
    return f"```{language}\n{code}\n```"


def without_prompts(doctest: str) -> str:
    """The code of a doctest; what it prints as comments."""
    lines = doctest.splitlines()
    return "\n".join(line[4:] if line[:3] in (">>>", "...") else f"# {line}" for line in lines)


def markdown(text: str) -> str:
    """A docstring that was dedented, as Markdown."""
    text = ROLE.sub(link, text)
    text = RESULT.sub(lambda found: f"**{found[1]}:**\n{dedent(found[2])}", text)
    text = DOCTEST.sub(lambda found: "\n" + fence("python", without_prompts(found[0])), text)
    return LITERAL.sub(lambda found: ":\n\n" + fence("text", dedent(found[1]).strip().replace("``", "")) + "\n\n", text)


class Markdown(griffe.Extension):
    """Applied to every docstring that is read, and to the names of the package."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring before it is parsed."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Where a module has the name of a function (``hyper``), the package means the function, as Python does."""
        if pkg.path == "hyperopt_ftp":
            found = vars(hyperopt_ftp).items()
            public = {name: value for name, value in found if name in pkg.members and not name.startswith("_")}
            meant = {
                name: pkg[f"{value.__module__.removeprefix('hyperopt_ftp.')}.{name}"]
                for name, value in public.items()
                if callable(value)
            }
            for name, target in meant.items():
                pkg.members[name] = griffe.Alias(name, target, parent=pkg)
