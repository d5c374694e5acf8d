"""What has to agree before a release, and the README that a package index gets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hyperopt_ftp as hft
from website import readme

ROOT = Path(__file__).parent.parent
PROJECT, CITATION, CHANGELOG = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md")
)
BASES = ("https://host/name/blob/v1", "https://host/name/raw/v1")


def disagreements(project: str, package: str, citation: str, changelog: str) -> list[str]:
    """The version that each file names must be one, and the day that of the changelog, which has one when it is out."""
    version = re.findall(r'^version = "(.+)"$', project, flags=re.M)
    cited = re.findall(r"^version: (.+)$", citation, flags=re.M)
    day = re.findall(r'^date-released: "(.+)"$', citation, flags=re.M)
    out = re.findall(rf"^## {re.escape(version[0])} - (\d{{4}}-\d\d-\d\d)$", changelog, flags=re.M)
    found = [] if version == [package] == cited else [f"versions {version}, {package}, {cited}"]
    return found + ([] if day == out else [f"days {day}, {out}"])


def test_version_and_day_agree():
    assert disagreements(PROJECT, hft.__version__, CITATION, CHANGELOG) == []


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 0),
        ({"project": 'version = "2.0"\n'}, 2),  # no other file names it, and it is not out
        ({"package": "1.1"}, 1),
        ({"citation": 'version: 1.1\ndate-released: "2026-01-02"\n'}, 1),
        ({"citation": "version: 1.0\n"}, 1),
        ({"changelog": "## Unreleased\n"}, 1),
        ({"changelog": "## 1.0 - 2026-01-03\n"}, 1),
        ({"changelog": "## Unreleased\n", "citation": "version: 1.0\n"}, 0),
    ],
)
def test_a_disagreement_is_seen(change, count):
    texts = {
        "project": 'name = "a"\nversion = "1.0"\n',
        "package": "1.0",
        "citation": 'cff-version: 1.2.0\nversion: 1.0\ndate-released: "2026-01-02"\n',
        "changelog": "## Unreleased\n\n## 1.0 - 2026-01-02\n\n## 0.9 - 2026-01-01\n",
    }
    assert len(disagreements(**texts | change)) == count


def test_the_pythons_of_the_metadata_are_those_that_are_tested():
    """The lowest is the one that is required; those of the workflow and of docs/status.md are named, and no others."""
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    required = re.findall(r'^requires-python = ">=(.+)"$', PROJECT, flags=re.M)
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    tested = re.findall(r"\d\.\d+", re.findall(r"python: \[(.*)\]", workflow)[0])
    assert named[:1] == required
    status = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
    passed = re.findall(r"3\.\d+", re.findall(r"^\| installation \|.*?(?=; `make)", status, flags=re.M)[0])
    assert named == tested == sorted(passed, key=lambda version: int(version[2:]))


@pytest.mark.parametrize(
    ("text", "moved"),
    [
        ("[a](docs/a.md#b) and [c](https://c.org)", f"[a]({BASES[0]}/docs/a.md#b) and [c](https://c.org)"),
        ("![f](docs/f.png)", f"![f]({BASES[1]}/docs/f.png)"),
        ("[![f](f.svg)](f.svg)", f"[![f]({BASES[1]}/f.svg)]({BASES[1]}/f.svg)"),
        ("[below](#below)", f"[below]({BASES[0]}/README.md#below)"),
        ("[`a`](a.md), `x[0](y)`", f"[`a`]({BASES[0]}/a.md), `x[0](y)`"),
        ("```python\nf[0](x)\n```\n[a](a.md)", f"```python\nf[0](x)\n```\n[a]({BASES[0]}/a.md)"),
        ("[write](mailto:a@b.c)", "[write](mailto:a@b.c)"),
    ],
)
def test_links_get_their_address_and_code_stays(text, moved):
    assert readme.absolute(text, *BASES) == moved
    assert readme.absolute(text, BASES[0] + "/", BASES[1] + "/") == moved


def test_every_link_of_the_readme_leads_to_a_file():
    text = readme.main([*BASES])
    targets = re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))
    ours = [target for target in targets if target.startswith(BASES)]
    assert [target for target in targets if not target.startswith("https://")] == []
    assert len(ours) > 20
    for target in ours:
        path = re.sub(r"^https://host/name/(blob|raw)/v1/|#.*", "", target)
        assert (ROOT / path).is_file(), target
        assert target.startswith(BASES[path.endswith(".png")])
    assert "<img" not in text  # an address in HTML would stay as it is


def test_the_readme_of_an_index_installs_from_there(monkeypatch, tmp_path):
    text = readme.main([*BASES])
    assert "pip install 'hyperopt-ftp[cpu]'" in text
    assert "'.[" not in text
    other = tmp_path / "README.md"
    other.write_text("pip install .")
    monkeypatch.setattr(readme, "README", other)
    with pytest.raises(SystemExit, match="README.md must have the line"):
        readme.main([*BASES])


@pytest.mark.parametrize(
    "given", [[], ["https://a"], ["https://a", "http://b"], ["https://a", "https://b", "https://c"]]
)
def test_other_addresses_are_refused(given):
    with pytest.raises(SystemExit, match="give two addresses that begin with https://: .* got"):
        readme.main(given)
