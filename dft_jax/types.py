"""The few structures that travel through the whole program, and the legend of shape letters.

Shape letters, used in tensor names (`hidden_BLD`), einsum strings and annotations:

    A  micro-batches of a step (gradient accumulation)    D  model width
    B  packed rows; in sampling, slots                    F  feed-forward width
    L  positions in a row                                 H  query heads
    N  positions flattened (B·L)                          G  key/value heads
    C  trained tokens in one chunk of the loss            R  query heads per key/value head: H = G·R
    V  vocabulary                                         K  width of a head
    Z  rank of an adapter                                 U  updates of a run
    I  inputs of a matrix                                 O  its outputs

In sampling besides (models/cached.py says how the output head is cut):

    S  places of a cache                                  M  blocks of the vocabulary, in a chunk
    T  tokens of the longest output                          or in all
    P  prompts that are prefilled together                W  tokens in a block
    U  chunks of the head                                 X  one axis of any length

Of images (models/vision.py; I is not that of a matrix):

    I  patches of a row                                   J  units of a row: 4 patches, a token each
    E  width of the tower                                 X  pixels of a patch, 588

A digit is an axis of that length, as in `temperatures_B1`. A small letter is the part of an axis
that one process or device holds, as in [A, b, L].
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh

Params = Any  # a plain nested dict of arrays
Weights = Any  # of a model: its Params; Adapted where it has adapters
AnyArray = jax.Array | np.ndarray  # on devices or of the host
AnyMesh = Mesh | AbstractMesh  # of devices, or of such as need not be there
# Batch.most_segments where a row has more than was foreseen.
MORE_SEGMENTS = 0
# A field of a pytree: an array of the shape in its name, or what stands for one while a program is
# described: a shape, a layout, a cotangent. Functions are annotated with shapes, fields are not.
Leaf = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """One packed batch.

    Two examples, `a b c` (target `c`) and `x y` (target `y`), in a row of five:

        tokens     a b x - -      inputs; the last token of an example is only ever a target
        targets    b c y - -      the token that follows, within the same example
        mask       0 1 1 0 0      the target is trained: a fact of position, never of token id
        segments   1 1 2 0 0      which example of the row; 0 is padding
        positions  0 1 0 0 0      position within the example (RoPE)
        weights    1 1 2 0 0      what a trained target weighs in the loss; None: each weighs 1

    Every array is [B, L], or [A, B, L] when it holds the micro-batches of a whole step; of numpy on
    the host, of JAX on devices, or a shape alone where a step is compiled ahead.

    `most_segments` is no array but part of the shape: no row has more (padding is one as well, here
    there are three), and attention's kernels are compiled for it. It is MORE_SEGMENTS where a row
    has more than was foreseen, and None where nobody has counted, which no such kernel takes.

    `n_parts` is no array either: positions lie in the order of so many devices' parts, which
    `model.balanced` gives them, and a model asks for where its mesh cuts rows. 1 is the order
    of the row, in which all batches are made.
    """

    tokens_BL: Leaf
    targets_BL: Leaf
    mask_BL: Leaf
    segments_BL: Leaf
    positions_BL: Leaf
    most_segments: int | None = dataclasses.field(default=None, metadata={"static": True})
    # None is no array: programs of runs without weights are as if there were none.
    weights_BL: Leaf = None
    # ImageBatch, or a FeatureBatch in its place; None where no row has an image.
    images: Leaf = None
    n_parts: int = dataclasses.field(default=1, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ImageBatch:
    """The images of a packed batch, each row with those of its own examples (data/image_rows.py).

    Patches lie in the order of windows, the four of a unit one after another. An image of 2 × 3
    units, whose windows are 2 × 2 units here, after the token `s` and before `e`, in a row of
    eight units' patches:

        unit (row, column)   0,0  0,1  1,0  1,1  0,2  1,2   -    -
        windows, for each     1    1    1    1    2    2    0    0     0 is padding
        images, likewise      1    1    1    1    1    1    0    0
        tokens                s   0,0  0,1  0,2  1,0  1,1  1,2   e     units row by row
        units                 0    1    2    5    3    4    6    0     1 + place above; 0 is text

    Of the micro-batches of a whole step every array has an axis A before these, as in Batch.
    """

    patches_BIX: Leaf  # uint8: colours, rows and columns of its pixels
    rows_BI: Leaf  # of the patch in its image, as its column is
    cols_BI: Leaf
    images_BI: Leaf  # which image of the row
    windows_BI: Leaf  # which window of the row
    units_BL: Leaf  # which unit a token is
    positions_BL3: Leaf  # time, row and column of each token within its example (spec.MRope)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureBatch:
    """What a frozen tower has made of the images of a packed batch (data/image_features.py).

    Units of an image lie row by row, so those of the row above are counted through:

        tokens               s   0,0  0,1  0,2  1,0  1,1  1,2   e
        units                0    1    2    3    4    5    6    0     1 + place of its features

    Axes, and the two members that an ImageBatch has too, are as there.
    """

    features_BJD: Leaf  # in the dtype that the tower computes in
    units_BL: Leaf
    positions_BL3: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenStats:
    """What objectives see of the model: float32 statistics of each target, zero where untrained.

    A gradient flows through `logp_BL` and `kl_BL` only. Those that are None by default are there
    for objectives that need them.
    """

    logp_BL: Leaf  # log π(target), nats
    entropy_BL: Leaf  # entropy of the next-token distribution, nats
    correct_BL: Leaf  # the target is (one of) the most probable token(s)
    # Which example of its row a trained token belongs to; 0 where untrained.
    examples_BL: Leaf
    # log π_ref(target), π_ref the model before training.
    reference_logp_BL: Leaf = None
    # KL(π_ref ‖ π) over the whole vocabulary, nats.
    kl_BL: Leaf = None
    # Entropy among the 20 most probable tokens, nats.
    top_entropy_BL: Leaf = None
    # Σ π(v)² over the vocabulary: 1 / V where all tokens are as probable, 1 where one is sure.
    concentration_BL: Leaf = None
    # π_ref(target) and that of all tokens less probable than it.
    reference_mass_BL: Leaf = None
    # What each token weighs in the loss, for objectives that look at a whole micro-batch; None
    # where all weigh 1. The loss of a token is multiplied by it outside of the objective.
    weights_BL: Leaf = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Those that are arguments of the compiled step, not constants in it.

    Runs that differ in nothing else share its program, which takes minutes to compile. Such are the
    learning rate, its schedule with the warm-up, and the seed.
    """

    # Learning rate of each update; the last one stands for all that follow.
    rates_U: Leaf
    seed: Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """What a step reads and never changes."""

    hyperparameters: Leaf  # Hyperparameters
    # What is trained as it was before training, for objectives that compare; None where that is
    # `base` anyway.
    reference: Params | None = None
    # The parameters beneath adapters, or beside those that are trained; None where all are.
    base: Params | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """The weights of a model with adapters (models/lora.py): both trees."""

    params: Params  # frozen
    adapters: Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes; `params` are the adapters where these are trained.

    `step` counts batches seen; the optimizer keeps its own count of updates, which is lower where
    steps were skipped.
    """

    step: Leaf
    params: Params
    opt_state: Any
