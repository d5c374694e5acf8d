"""Plant small faults (mutants) in a copy of the package, one at a time: does a test fail for each?

The sample is fixed by the package's text, so two suites can be compared on it: ``--out`` keeps the outcomes, and
``--before`` names those that another suite caught and this one does not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import cosmic_ray.plugins
from cosmic_ray.commands import init
from cosmic_ray.mutating import use_mutation
from cosmic_ray.work_db import WorkDB, use_db

from .covering import Covering

ROOT = Path(__file__).resolve().parents[2]

#: Mutants of each part of the package. What torch.compile runs has tests of its own, which take hours.
PARTS = {"hyper": 90, "anchored": 20, "optimizers": 40, "torch_optim": 50, "mixing": 8, "schedules.py": 12}
COMPILED = "hyperopt_ftp/hyper/compiled/"


def files_of(part: str) -> list[Path]:
    place = ROOT / "hyperopt_ftp" / part
    files = sorted(place.rglob("[!_]*.py")) if place.is_dir() else [place]
    found = [file.relative_to(ROOT) for file in files]
    found = [file for file in found if not file.as_posix().startswith(COMPILED)]
    if not found:
        raise SystemExit(f"{part} has no file: nothing would be planted there")
    return found


def sample(part: str, count: int, seed: int) -> list[Any]:
    """Mutants, at most one of each place in the text: some have a dozen, others one."""
    places: dict[tuple[Any, ...], list[Any]] = {}
    with tempfile.TemporaryDirectory() as folder, use_db(str(Path(folder, "items")), WorkDB.Mode.create) as db:
        init(files_of(part), db, {})
        for item in db.work_items:
            mutation = item.mutations[0]
            # Unions in annotations, which nothing evaluates, and operators that floating-point tensors do not have.
            if not re.search(r"BinaryOperator_.*(Bit|Shift)", mutation.operator_name):
                key = (mutation.module_path.as_posix(), mutation.start_pos, mutation.end_pos)
                places.setdefault(key, []).append(mutation)
    if not places or count < 1:
        raise SystemExit(f"of {part} no mutant is chosen: nothing would be said about it")
    chosen = sorted(places)
    random.Random(seed).shuffle(chosen)  # so that a small sample is a part of a large one
    every = [sorted(places[key], key=lambda m: (m.operator_name, m.occurrence)) for key in chosen[:count]]
    return [random.Random(f"{seed} {found[0].start_pos}").choice(found) for found in every]


def name_of(mutation: Any) -> str:
    line, column = mutation.start_pos
    return f"{mutation.module_path.as_posix()}:{line}:{column} {mutation.operator_name}"


def outcome(mutation: Any, tests: list[str], copy: Path) -> str:
    """caught, by a test that fails or never ends, or survived."""
    if not tests:
        return "survived: no test runs it"
    arguments = copy / "tests-to-run"
    arguments.write_text("\n".join(tests))
    operator = cosmic_ray.plugins.get_operator(mutation.operator_name)(**mutation.operator_args)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"@{arguments}"]
    with use_mutation(copy / mutation.module_path, operator, mutation.occurrence):
        try:
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            return "caught: it never ends"
    if done.returncode == 0:
        return "survived"
    if "not found:" in done.stderr + done.stdout:
        if subprocess.run([*command, "--collect-only"], cwd=copy, capture_output=True).returncode:
            raise SystemExit(f"tests have moved since the map was made: {done.stdout}{done.stderr}")
        return "caught: tests are called otherwise"
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, flags=re.M)
    return f"caught: {failed[0] if failed else done.stdout.strip().splitlines()[-1:]}"


def copies(count: int) -> Iterator[Path]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    parts = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for _ in range(count):
        copy = Path(tempfile.mkdtemp(prefix="mutants"))
        for part in parts:
            (copy / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / part, copy / part)
        yield copy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--mutants", type=int, help="of each part, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120, help="of tests a mutant, at most")
    parser.add_argument("--map", type=Path, default=ROOT / "runs/mutants", help="of lines to tests; made where missing")
    parser.add_argument("--out", type=Path, help="file for the outcomes")
    parser.add_argument("--before", type=Path, help="outcomes of another suite")
    parser.add_argument("--survivors", type=Path, help="of these outcomes alone, such as with more --seconds")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.chdir(ROOT)
    covering, free = Covering(ROOT, args.map.resolve()), Queue()
    mutants = [m for part in args.part for m in sample(part, min(args.mutants or PARTS[part], PARTS[part]), args.seed)]
    if args.survivors:
        known = json.loads(args.survivors.read_text())
        mutants = [m for m in mutants if known.get(name_of(m), "").startswith("survived")]
    if not mutants:
        raise SystemExit(f"{args.survivors} has no survivor among these mutants: nothing would be planted")
    outcomes: dict[str, str] = {}

    def plant(mutation: Any) -> None:
        copy, module, name = free.get(), mutation.module_path.as_posix(), name_of(mutation)
        tests = covering.tests(module, mutation.start_pos[0], mutation.end_pos[0], args.seconds)
        try:
            outcomes[name] = outcome(mutation, tests, copy)
        finally:
            free.put(copy)
        print(outcomes[name], name, f"({len(tests)} tests)", flush=True)

    for copy in copies(args.processes):
        free.put(copy)
    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(plant, mutants))
    while not free.empty():
        shutil.rmtree(free.get())
    caught = {name for name, said in outcomes.items() if said.startswith("caught")}
    print(f"{len(caught)} of {len(outcomes)} mutants caught ({100 * len(caught) / len(outcomes):.1f} %)")
    if args.out:
        args.out.write_text(json.dumps(dict(sorted(outcomes.items())), indent=1) + "\n")
    before = json.loads(args.before.read_text()) if args.before else {}
    lost = [
        name for name, said in before.items() if said.startswith("caught") and name in outcomes and name not in caught
    ]
    print(*(f"no longer caught: {name}" for name in lost), sep="\n")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
