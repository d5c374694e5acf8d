"""The wheel holds the package alone and works without extras; what has to agree before a release does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import hyperopt_ftp as hft
from website import readme

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel's files. It is built of a copy, since setuptools puts into it what an earlier build has left."""
    pytest.importorskip("pip")
    folder, tree = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "hyperopt_ftp", tree / "hyperopt_ftp", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(tree)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "files")
    return folder / "files"


def test_it_has_the_package_and_nothing_else(unpacked):
    info = f"hyperopt_ftp-{hft.__version__}.dist-info"
    assert {entry.name for entry in unpacked.iterdir()} == {"hyperopt_ftp", info}
    assert (unpacked / info / "licenses" / "LICENSE").is_file()
    source = ROOT / "hyperopt_ftp"
    files = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and p.parent.name != "__pycache__"}
    assert Path("py.typed") in files
    assert {
        p.relative_to(unpacked / "hyperopt_ftp") for p in (unpacked / "hyperopt_ftp").rglob("*") if p.is_file()
    } == files


def test_it_needs_torch_and_einops(unpacked):
    (metadata,) = unpacked.glob("*.dist-info/METADATA")
    needs = Parser().parsestr(metadata.read_text()).get_all("Requires-Dist") or []
    plain = {re.match(r"[\w-]+", need)[0] for need in needs if "extra ==" not in need}  # pyright: ignore
    assert plain == {"torch", "einops"}


def test_what_the_readme_shows_of_pure_optimizers_and_a_class_run_with_no_extra_installed(unpacked, tmp_path):
    _, train, composed = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    hidden = ("triton", "numba", "torchopt", "safetensors", "matplotlib", "rich", "timm", "transformers")
    code = [
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))",
        train,
        "assert 'torch._dynamo' not in sys.modules",  # which takes a second to import; classes of torch.optim need it
        composed,
        "opt = hft.FTPAdamW([torch.nn.Parameter(torch.ones(2, 2))])",
        "print(opt.execution, hft.__file__)",
    ]
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    told = subprocess.run(
        [sys.executable, "-c", "\n".join(code)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[-2:] == ["foreach", str(unpacked / "hyperopt_ftp" / "__init__.py")]


def test_dir_has_what_is_public():
    public = [name for name in dir(hft) if not name.startswith("_")]
    assert {name for name in public if not callable(getattr(hft, name))} == {"optimizers", "schedules", "tree"}


def test_every_public_function_names_an_argument_that_it_does_not_know():
    public = {name: x for name, x in vars(hft).items() if not name.startswith("_") and callable(x)}
    made_inside = {"Estimate", "Optimizer"}  # named tuples that functions return
    passes_on = {"remat"}  # gives all names to a function of the caller's
    assert len(public) > 60
    for name in public.keys() - made_inside - passes_on:
        with pytest.raises(TypeError, match=rf"^{name}: got an unexpected keyword argument 'unheard_of'; "):
            public[name](unheard_of=1)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("AdamW", "; did you mean adamw or FTPAdamW?"),
        ("FTPAdam", "; did you mean 'FTPAdamW'?"),
        ("LBFGS", ": it evaluates a loss several times in a step; solve by torch.optim.LBFGS inside hft.root"),
        ("hypergradients", "; did you mean 'hypergradient'?"),
        ("nowhere", ""),
    ],
)
def test_a_name_that_is_not_there_may_be_another(name, hint):
    with pytest.raises(AttributeError) as told:
        getattr(hft, name)
    assert str(told.value) == f"module 'hyperopt_ftp' has no attribute {name!r}{hint}"


def test_version_and_day_agree():
    """The version is one; the changelog and the citation have the same day, when it is out, or none."""
    project, citation, changelog = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
    )
    (version,) = re.findall(r'^version = "(.+)"$', project, flags=re.M)
    assert [version] == [hft.__version__] == re.findall(r"^version: (.+)$", citation, flags=re.M)
    out = re.findall(rf"^## {re.escape(version)} - (\d{{4}}-\d\d-\d\d)$", changelog, flags=re.M)
    assert re.findall(r'^date-released: "(.+)"$', citation, flags=re.M) == out


def test_the_pythons_of_the_metadata_are_those_that_are_tested():
    """The lowest is the one that is required; those of the workflow and of docs/status.md are named, and no others."""
    project, workflow, status = (
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("pyproject.toml", ".github/workflows/tests.yml", "docs/status.md")
    )
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    assert named[:1] == re.findall(r'^requires-python = ">=(.+)"$', project, flags=re.M)
    tested = re.findall(r"\d\.\d+", re.findall(r"python: \[(.*)\]", workflow)[0])
    passed = re.findall(r"3\.\d+", re.findall(r"^\| installation \|.*?(?=; `make)", status, flags=re.M)[0])
    assert named == tested == sorted(passed, key=lambda version: int(version[2:]))


def test_the_readme_of_an_index_has_whole_addresses_and_installs_from_there():
    bases = ("https://host/name/blob/v1", "https://host/name/raw/v1")
    text = readme.main([*bases])
    assert "pip install 'hyperopt-ftp[cpu]'" in text
    assert "'.[" not in text
    assert "<img" not in text  # an address in HTML would stay as it is
    targets = re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))
    ours = [target for target in targets if target.startswith(bases)]
    assert [target for target in targets if not target.startswith("https://")] == []
    assert len(ours) > 20
    for target in ours:
        path = re.sub(r"^https://host/name/(blob|raw)/v1/|#.*", "", target)
        assert (ROOT / path).is_file(), target
        assert target.startswith(bases[path.endswith(".png")])
    code = "[`a`](a.md), `x[0](y)`\n```python\nf[0](x)\n```\n[![f](f.svg)](f.svg)"
    moved = code.replace("a.md", f"{bases[0]}/a.md").replace("f.svg", f"{bases[1]}/f.svg")
    assert readme.absolute(code, *bases) == moved
    with pytest.raises(SystemExit, match="give two addresses that begin with https://: .* got"):
        readme.main(["https://a", "http://b"])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_editable_install_is_not_hidden_by_what_a_plain_one_has_compiled(tmp_path):
    python, left = tmp_path / ".venv/bin/python", tmp_path / ".venv/lib/python3.11/site-packages/hyperopt_ftp"
    (left / "kernels" / "__pycache__").mkdir(parents=True)
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")  # installs nothing
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["make", "--silent", ".venv/.demo"], cwd=tmp_path, check=True)
    assert not left.exists()
