"""Pictures of one's own: root/<domain>/<class>/<item>.<suffix>.

The folders may come from somebody else: nothing outside of the root is read, and nothing huge is decoded.
"""

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import ImageOps

from experiments.classification.data import Pictures
from experiments.common.errors import InputError
from experiments.common.pictures import SUFFIXES, check_inside, read_picture
from experiments.common.progress import Progress

SIZE = 64
# What else is in the record of a training, beside a value for each domain.
RESERVED = ("id", "ood", "scores", "method", "seed", "lr", "diverged", "steps", "seconds", "losses", "kind")
RESERVED += ("images_per_second", "peak_mib")


def _subfolders(folder: Path, root: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    check_inside(found, root, "--data-root")
    return found


def _files(folder: Path, root: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    check_inside(found, root, "--data-root")
    return found


def _find(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Files by domain and class, after every check that needs no picture to be opened."""
    if not root.is_dir():
        raise InputError(f"--data-root {root} is not a folder")
    found = {
        domain.name: {name.name: _files(name, root) for name in _subfolders(domain, root)}
        for domain in _subfolders(root, root)
    }
    if len(found) < 2:
        names = f"only '{next(iter(found))}'" if found else "none"
        raise InputError(
            f"--data-root {root} must hold at least two domain folders (root/<domain>/<class>/*.png), found {names}"
        )
    for domain, classes in found.items():
        if not any(classes.values()):
            raise InputError(
                f"domain folder {root / domain} is empty: expected <class>/ folders with pictures "
                f"({', '.join(SUFFIXES)})"
            )
    if taken := [domain for domain in found if domain in RESERVED]:
        raise InputError(f"domain folder {root / taken[0]}: {', '.join(RESERVED)} are names of results; rename it")
    first, *others = found
    for domain in others:
        extra, lacking = found[domain].keys() - found[first].keys(), found[first].keys() - found[domain].keys()
        if extra or lacking:
            raise InputError(
                f"the class folders differ: '{domain}' has {_names(extra)} that '{first}' lacks and lacks "
                f"{_names(lacking)}; every domain needs the same classes"
            )
    for domain, classes in found.items():
        for name, files in classes.items():
            if not files:
                raise InputError(f"class folder {root / domain / name} holds no picture ({', '.join(SUFFIXES)})")
    if len(found[first]) < 2:
        raise InputError(f"--data-root {root} has the single class '{next(iter(found[first]))}'; two are needed")
    return found


def _names(classes: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(classes)) or "none"


def _read(file: Path) -> np.ndarray:
    return np.asarray(ImageOps.pad(read_picture(file), (SIZE, SIZE), color="white"), dtype=np.uint8)


def folder_pictures(root: Path, progress: Progress) -> Pictures:
    """Read every picture, fitted into a white square. One class and stem is one item, whatever the domain."""
    found = _find(root)
    domain_names = tuple(found)
    classes = tuple(sorted(found[domain_names[0]]))
    rows = [
        (domain, classes.index(name), f"{name}/{file.stem}", file)
        for domain, domain_name in enumerate(domain_names)
        for name, files in sorted(found[domain_name].items())
        for file in files
    ]
    arrays = []
    with progress.task("Reading pictures", len(rows)) as task:
        for *_, file in rows:
            arrays.append(_read(file))
            task.advance()
    items = tuple(item for _, _, item, _ in rows)
    return Pictures(
        images=rearrange(torch.from_numpy(np.stack(arrays)), "n h w rgb -> n rgb h w").contiguous(),
        labels=torch.tensor([label for _, label, _, _ in rows]),
        domains=torch.tensor([domain for domain, *_ in rows]),
        items=items,
        groups=items,
        classes=classes,
        domain_names=domain_names,
    )
