"""Makes every function of ``cluster`` and ``deployments`` record its calls in this process.

Python loads a module of this name at its start. A loader adds one statement to each function when it compiles the
product's modules, so other code runs as always. It neither reads nor writes compiled files.

A record is written when a function is entered, when a generator goes on after a ``yield``, and when an ``async for``
gets its next item. Each line is the time of a clock that all processes of the machine share, a space, and
``file:qualified name``.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

ROOT: Final = Path(__file__).parents[3]
RECORD: Final = "__prism_record__"
LOG: Final = Path(os.environ["PRISM_RECORDS"], str(os.getpid())).open("a", buffering=1)  # noqa: SIM115 -- open as long as the process lives


def record(name: str, value: Any = None) -> Any:
    """Writes a line, and returns ``value``."""
    LOG.write(f"{time.monotonic()} {name}\n")
    return value


class Recorded(ast.NodeTransformer):
    """Adds calls of ``record`` to the functions of one file."""

    def __init__(self, file: str) -> None:
        self._file, self._names = file, list[str]()

    def _call(self, *values: ast.expr) -> ast.Call:
        name = ast.Constant(f"{self._file}:{'.'.join(self._names)}")
        return ast.Call(ast.Name(RECORD, ast.Load()), [name, *values], [])

    def _named(self, node: Any) -> Any:
        self._names.append(node.name)
        self.generic_visit(node)
        if not isinstance(node, ast.ClassDef):
            node.body.insert(1 if ast.get_docstring(node) else 0, ast.Expr(self._call()))
        self._names.pop()
        return node

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _named  # noqa: N815

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        """The body of the loop records first."""
        self.generic_visit(node)
        node.body.insert(0, ast.Expr(self._call()))
        return node

    def visit_Yield(self, node: ast.Yield) -> ast.AST:
        """The function records again when it goes on."""
        self.generic_visit(node)
        return self._call(node)


class RecordingLoader(SourceFileLoader):
    """Compiles a module from its source with the added statements."""

    def get_code(self, fullname: str) -> CodeType:
        """See ``SourceFileLoader.get_code``."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        file = str(Path(path).relative_to(ROOT))
        recorded = ast.fix_missing_locations(Recorded(file).visit(tree))
        return compile(recorded, path, "exec", dont_inherit=True)


class Finder(MetaPathFinder):
    """Gives the product's modules the recording loader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``MetaPathFinder.find_spec``."""
        if fullname.partition(".")[0] not in {"cluster", "deployments"}:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                if isinstance(spec.loader, SourceFileLoader) and spec.origin and Path(spec.origin).is_relative_to(ROOT):
                    spec.loader = RecordingLoader(fullname, spec.origin)
                return spec
        return None


setattr(builtins, RECORD, record)
sys.meta_path.insert(0, Finder())
