"""Features that a frozen tower has made of images, kept in a folder: a file for each image.

    FOLDER/<tower>/<xy>/<xyz…>

`<tower>` stands for the tower's weights, and `<xyz…>`, of which `<xy>` is the beginning, for the
grid and the patches that it saw: both are SHA-256 in hex. So whatever changes what a tower makes of
an image (its weights, how large pictures are, how they are scaled) leads to other files.

A file is the SHA-256 of the rest in 32 bytes, and the features [J, D] of the image's units, row by
row, in the dtype that the tower computes in: no rounding lies between them and a
step that has the tower in it.
"""

import dataclasses
import hashlib
import os
import secrets
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dft_jax.data.image_rows import CutImage
from dft_jax.runtime import errors

_DIGEST = hashlib.sha256().digest_size


def key_of(image: CutImage) -> str:
    """SHA-256 of all that a tower sees of an image."""
    # Equal patches in another grid are another image.
    total = hashlib.sha256("x".join(map(str, image.grid)).encode() + b"\n")
    total.update(np.ascontiguousarray(image.patches_IX))
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class FeatureFile:
    """Where the features of an image are, or are going to be: [n_units, width] of `dtype`."""

    path: Path
    n_units: int
    width: int
    dtype: str

    @classmethod
    def of(cls, folder: Path, key: str, n_units: int, width: int, dtype: str) -> "FeatureFile":
        """That of a key in the folder of a tower."""
        return cls(folder / key[:2] / key, n_units, width, dtype)

    def found(self) -> Float[np.ndarray, "J D"] | None:
        """The features; None where there is no whole file of them.

        Raises:
          UserError: there is one that cannot be read.
        """
        with errors.user_errors(f"{self.path}: features of an image", "make it readable"):
            # Not made yet, which is no error; a folder that is not to be looked into is one.
            if not self.path.exists():
                return None
            content = self.path.read_bytes()
        values = memoryview(content)[_DIGEST:]
        dtype = jnp.dtype(self.dtype)
        is_complete = len(values) == self.n_units * self.width * dtype.itemsize
        if not is_complete or hashlib.sha256(values).digest() != content[:_DIGEST]:
            return None
        return np.frombuffer(values, dtype).reshape(self.n_units, self.width)

    def read(self) -> Float[np.ndarray, "J D"]:
        """The features, of a file that was whole when the run began.

        Raises:
          UserError: it is gone, damaged, or cannot be read.
        """
        features_JD = self.found()
        if features_JD is None:
            raise errors.UserError(
                f"{self.path}: features of an image were there when the run began, and are damaged"
                " or gone; the same command makes them again"
            )
        return features_JD

    def write(self, features_JD: Float[np.ndarray, "J D"]) -> None:
        """Under a name of its own, then renamed: no reader and no kill sees half a file.

        A power cut may leave one, since nothing is flushed for each image: `found` notices.

        Raises:
          OSError: as of a disk that is full.
        """
        assert features_JD.shape == (self.n_units, self.width), features_JD.shape
        assert features_JD.dtype == jnp.dtype(self.dtype), features_JD.dtype
        content = features_JD.tobytes()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Another job may be writing the same.
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
