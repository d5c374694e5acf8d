"""Which tests run a line of the package, and how long each takes: one run of the suite under coverage tells both."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from coverage import CoverageData

#: As `make test` has it.
LEFT_OUT = (
    "tests/compiled",
    "tests/device",
    "tests/experiments",
    "tests/integrations/test_large.py",
    "tests/integrations/test_language.py",
)
#: Tests of a line; with fewer, processes that tests start may run it most.
FEW = 10
#: These start processes, whose lines coverage does not see.
IN_PROCESSES = "tests/distributed"


class Covering:
    """Made by a run of the suite, which is kept in ``folder`` and read there the next time."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, lines, durations = root, folder / "coverage", folder / "durations.xml"
        gone = [path for path in (*LEFT_OUT, IN_PROCESSES) if not (root / path).exists()]
        if gone:
            raise SystemExit(f"tests that are named here have moved: {', '.join(gone)}")
        if not durations.exists():
            folder.mkdir(parents=True, exist_ok=True)
            suite = [*("--numprocesses", "2", "--dist", "loadfile"), *(f"--ignore={path}" for path in LEFT_OUT)]
            kept = ["--cov", "--cov-context=test", "--cov-report=", f"--junitxml={durations}"]
            command = [sys.executable, "-m", "pytest", "-q", *suite, *kept]
            if subprocess.run(command, cwd=root, env={**os.environ, "COVERAGE_FILE": str(lines)}).returncode:
                durations.unlink(missing_ok=True)
                raise SystemExit("the tests fail without a mutant: nothing can be said")
        self.data = CoverageData(str(lines))
        self.data.read()
        self.files = {Path(file).relative_to(_parent(file)).as_posix(): file for file in self.data.measured_files()}
        cases = ElementTree.parse(durations).iter("testcase")
        contexts = (context.rpartition("|")[0] for context in self.data.measured_contexts())
        tests = {test for test in contexts if test}
        gone = sorted({file for test in tests if not (root / (file := test.partition("::")[0])).exists()})
        if gone:
            raise SystemExit(f"tests have moved since {folder} was made, remove it: {', '.join(gone)}")
        self.seconds = {(case.get("classname"), case.get("name")): float(case.get("time", 0)) for case in cases}

    def tests(self, module: str, first: int, last: int, seconds: float) -> list[str]:
        """Those that run one of the lines.

        One of each function, then another of each, the quickest first, until they take ``seconds``. Where none does,
        the line may be run by an import: then those that run any line of the module. Where few do, it may be run by
        processes that a test starts: then all of ``tests/distributed`` too, however long they take.
        """
        contexts = self.data.contexts_by_lineno(self.files[module]) if module in self.files else {}
        within = statement(self.root / module, first, last)
        own = self._ids(contexts, within)
        found = own or self._ids(contexts, range(1, 10**6))
        by_function = defaultdict(list)
        for test in sorted(found, key=self._duration):
            by_function[test.partition("[")[0]].append(test)
        ranks = {test: rank for tests in by_function.values() for rank, test in enumerate(tests)}
        chosen, total = [], 0.0
        for test in sorted(ranks, key=lambda test: (ranks[test], self._duration(test))):
            total += self._duration(test)
            if chosen and (total > seconds or len(chosen) == 1000):
                break
            chosen.append(test)
        return chosen + [IN_PROCESSES] * (len(own) < FEW)

    def _ids(self, contexts: dict[int, list[str]], lines: range) -> set[str]:
        return {context.rpartition("|")[0] for line in lines if line in contexts for context in contexts[line]} - {""}

    def _duration(self, test: str) -> float:
        file, _, name = test.partition("::")
        return self.seconds.get((file.removesuffix(".py").replace("/", "."), name.replace("::", ".")), 0.1)


def _parent(file: str) -> Path:
    """The folder that has the package: the run may have been made in another clone."""
    return next(
        path.parent for path in Path(file).parents if path.name == "hyperopt_ftp" and path.parent.name != "hyperopt_ftp"
    )


def statement(file: Path, first: int, last: int) -> range:
    """Lines of the smallest statements, without what they hold, around some lines: coverage counts statements."""
    spans = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            if node.lineno <= first and last <= max(end, node.lineno):
                spans.append(range(node.lineno, max(end, node.lineno) + 1))
    return min(spans, key=len) if spans else range(first, last + 1)
