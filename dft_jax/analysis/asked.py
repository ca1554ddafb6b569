"""What a user asks of demonstrations that are read under models: rows, prompt, lengths, images."""

import dataclasses
from pathlib import Path

from dft_jax.data import formats, image_columns
from dft_jax.data.image_settings import MAX_PIXELS
from dft_jax.data.templates import AUTO
from dft_jax.runtime import options


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a user asks for; flags of `evaluate --heldout` and `analysis.tokens` are these."""

    rows: str = "fields"
    prompt: str = AUTO
    prompt_field: str = "prompt"
    completion_field: str = "completion"
    context: int = 4096
    max_rows: int = 0
    # As the keys of config.data; of the pixels 0 is what these are by default.
    image_field: str = ""
    image_folder: str = ""
    image_min_pixels: int = 0
    image_max_pixels: int = 0

    def mistakes(self, prefix: str) -> list[str]:
        """What is wrong by itself, a line each; `prefix` stands before the names of settings."""
        if self.rows not in formats.ROW_FORMATS:
            what = f"{prefix}rows={self.rows} is unknown"
            return [options.unknown(what, self.rows, list(formats.ROW_FORMATS))]
        found = []
        folder, field = self.image_folder, self.image_field
        if folder and not Path(folder).is_dir():
            what = f"{prefix}image_folder={folder}: no such folder (looked from {Path.cwd()})"
            found.append(f"{what}; give the folder that the images are in")
        if field and self.rows not in image_columns.WITH_FIELD:
            read_by = " and ".join(image_columns.WITH_FIELD)
            what = f"{prefix}image_field={field} has no effect: only {prefix}rows={read_by} read it"
            found.append(f"{what}; remove it")
        for name in ("image_min_pixels", "image_max_pixels"):
            value = getattr(self, name)
            if value < 0:
                found.append(f"{prefix}{name}={value} should be at least 0")
        # No image can have so many and so few.
        least, most = self.image_min_pixels, self.image_max_pixels or MAX_PIXELS
        if least > most:
            what = f"{prefix}image_min_pixels={least} is above the most, {most}"
            found.append(f"{what}; lower it, or raise {prefix}image_max_pixels")
        return found
