"""Pictures that may come from anybody: nothing outside of a folder is read, and nothing huge is decoded."""

from pathlib import Path

from PIL import Image, ImageOps

from experiments.common.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")  # Pillow knows many more, some of which start other programs
PIXELS = 65_000_000  # what large cameras take; below Pillow's own limit


def opened(file: Path, root: Path, *, whole: bool = True) -> Image.Image:
    """As the file has it, or without `whole` its header alone. Links may lead anywhere within the root."""
    if not (target := file.resolve()).is_relative_to(root.resolve()):
        raise InputError(f"{file} leads to {target}, outside of {root}; copy it there")
    try:
        with Image.open(file, formats=FORMATS) as image:  # nothing is decoded yet
            if image.width * image.height > PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels, at most {PIXELS:,} are read")
            if whole:
                image.load()
            return image
    except Exception as error:  # Pillow's decoders raise many unrelated types on damaged files
        allowed = f"repair or remove it (formats: {', '.join(FORMATS)})"
        raise InputError(f"cannot read the picture {file} ({error}); {allowed}") from error


def upright(image: Image.Image) -> Image.Image:
    """In RGB; what is transparent becomes white."""
    image = ImageOps.exif_transpose(image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
