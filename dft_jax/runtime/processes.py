"""Which process of a job this one is."""

import jax


def is_first() -> bool:
    """Whether this is process 0, the one that writes the job's files and prints what all found.

    True in a job of a single process. Work that only this process does must hold no collective:
    the others would never come to it. JAX has to start its backend to know, which takes most of the
    memory of a GPU: a program that only starts others should not ask.
    """
    return jax.process_index() == 0
