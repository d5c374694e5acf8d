"""Lines of a function, without imports, docstrings, comments and blank ones."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any

_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of(function: Callable[..., Any]) -> int:
    source = textwrap.dedent(inspect.getsource(function))
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in _NO_CODE]
    found = {line for t in tokens for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (text or isinstance(node, (ast.Import, ast.ImportFrom))):
            found -= {*range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    return len(found)
