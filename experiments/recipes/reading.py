"""Reading pictures that may come from anybody: nothing outside of a folder is read, and nothing huge is decoded."""

import warnings
from pathlib import Path

from PIL import Image, ImageOps

from experiments.common.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # Pillow knows many more, some of which start other programs
PIXELS = 65_000_000  # what large cameras take; below Pillow's own limit
BYTES = 4 * PIXELS + 2**20  # so many pixels uncompressed, and a header


def check_inside(paths: list[Path], root: Path) -> None:
    """Links may lead anywhere within the root, and the root itself may be one."""
    inside = root.resolve()
    for path in paths:
        target = path.resolve()
        if not target.is_relative_to(inside):
            raise InputError(
                f"{path} leads to {target}, outside of --root {root}; copy the pictures into it, or give the folder "
                "that holds them all as --root"
            )


def _open(file: Path) -> Image.Image:
    """Decoded, as the file has it."""
    if (size := file.stat().st_size) > BYTES:
        raise _too_large(file, f"{size:,} bytes", BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:  # nothing is decoded yet
                if image.width * image.height > PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
                image.load()
                return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        # Pillow: "Image size (100000000 pixels) exceeds limit of ...", which is not ours
        raise _too_large(file, str(error).partition(" exceeds")[0], PIXELS) from error
    except Exception as error:  # Pillow's decoders raise many unrelated types on damaged files
        raise InputError(
            f"cannot read the picture {file} ({error}); repair or remove it (formats: {', '.join(FORMATS)})"
        ) from error


def _too_large(file: Path, size: str, limit: int) -> InputError:
    return InputError(f"the picture {file} is too large: {size}, at most {limit:,} are read; shrink or remove it")


def read_picture(file: Path) -> Image.Image:
    """In RGB and upright; what is transparent becomes white."""
    image = ImageOps.exif_transpose(_open(file))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
