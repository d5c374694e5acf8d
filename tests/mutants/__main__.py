"""Plant small faults (mutants) in a copy of the package, one at a time: does a test fail for each?"""

import argparse
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cosmic_ray.commands import init
from cosmic_ray.mutating import mutate_and_test
from cosmic_ray.work_db import WorkDB, use_db

ROOT = Path(__file__).resolve().parents[2]


def files_of(folder: str) -> list[str]:
    return sorted(str(file.relative_to(ROOT)) for file in (ROOT / folder).glob("[!_]*.py"))


def tests_of(folder: str, *names: str) -> list[str]:
    return [f"tests/{folder}/test_{name}.py" for name in names]


#: Modules, and the tests that are about them, the quickest first; before them, each module's own examples.
SUBJECTS = {
    "engine": (
        files_of("hyperopt_ftp/hyper"),
        tests_of("pure", "hypergradient", "bilevel", "hyper", "wise", "domains", "bad_input", "train_edges")
        + tests_of(
            "pure",
            "wrong_arguments",
            "bilevel_outside",
            "implicit",
            "losses_seen",
            "random_numbers",
            "numbers",
            "train",
        ),
    ),
    "rules": (
        files_of("hyperopt_ftp/anchored"),
        tests_of("pure", "projections", "ftp", "family", "domains", "bad_input", "hyper", "contract"),
    ),
    "classes": (
        [
            f"hyperopt_ftp/torch_optim/{name}.py"
            for name in (
                "backends",
                "bases",
                "checks",
                "given",
                "hold",
                "loading",
                "modes",
                "optimizer",
                "single",
                "store",
            )
        ],
        tests_of(
            "torch_optim",
            "state",
            "given",
            "modes",
            "mars_sp",
            "hypergradient_descent",
            "names",
            "loaded_state",
            "old_checkpoints",
        )
        + tests_of(
            "torch_optim",
            "family",
            "bad_input",
            "bad_input_table",
            "checkpoints",
            "replaced_state",
            "amp",
            "classes",
            "models",
        )
        + tests_of("torch_optim", "training_loops", "heads_and_adapters", "memory", "machine", "compile")
        + ["tests/kernels/test_choice.py", "tests/kernels/test_executions.py", "tests/test_watch.py"]
        + ["tests/distributed/test_processes.py"],
    ),
}


def command(module: str, tests: list[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", module, *tests]


def places(modules: list[str], session: Path) -> dict[tuple[Any, ...], list[Any]]:
    """Mutants by the place in the text: some have a dozen, others one."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    with use_db(str(session), WorkDB.Mode.create) as db:
        init([Path(module) for module in modules], db, {})
        for item in db.work_items:
            mutation = item.mutations[0]
            # Unions in annotations, which nothing evaluates, and operators that floating-point tensors do not have.
            if not re.search(r"BinaryOperator_.*(Bit|Shift)", mutation.operator_name):
                key = (str(mutation.module_path), mutation.start_pos, mutation.end_pos)
                found.setdefault(key, []).append(mutation)
    return {key: sorted(found[key], key=lambda m: (m.operator_name, m.occurrence)) for key in sorted(found)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20, help="of each subject")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subject", choices=SUBJECTS, help="one of the three alone")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    killed = planted = 0
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        copy = Path(folder, "copy")
        for part in ("hyperopt_ftp", "tests", "examples"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        os.chdir(copy)  # before the installed package on the path of whatever python -m starts
        for subject in [args.subject] if args.subject else SUBJECTS:
            files, tests = SUBJECTS[subject]
            if subprocess.run(command(files[0], tests)).returncode:
                print("the tests fail without a mutant: nothing can be said", file=sys.stderr)
                return 2
            rng, every = random.Random(args.seed), places(files, Path(folder, f"{subject}.sqlite"))
            for key in rng.sample(list(every), min(args.mutants, len(every))):
                mutation = rng.choice(every[key])
                result = mutate_and_test([mutation], shlex.join(command(key[0], tests)), timeout=1200)
                planted += 1
                killed += result.is_killed
                outcome = "killed" if result.is_killed else "SURVIVED"
                print(outcome, f"{key[0]}:{key[1][0]}", mutation.operator_name, flush=True)
                if not result.is_killed:
                    print(result.diff, flush=True)
    print(f"{killed} of {planted} mutants killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
