"""How long the matrix products of model T's step take alone: what the whole step is to be compared
with.

python -m experiments.performance.products

The products of one layer (forward, and the gradients of inputs and kernels) and of the head on the
trained half of the tokens, without attention's own, which are 3 % of all. Prints milliseconds and
GFLOP/s, medians of 15.
"""

import time

import jax
import numpy as np

from experiments.performance.workload import LENGTH, SHAPES


def milliseconds(function, *arguments) -> float:
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*arguments))
    spent = []
    for _ in range(15):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent))


def products_of(kernels, inputs, cotangents):
    triples = zip(kernels, inputs, cotangents, strict=True)
    return [product for w, x, dy in triples for product in (x @ w, dy @ w.T, x.T @ dy)]


def measured(sizes: list[tuple[int, int]], tokens: int) -> tuple[float, float]:
    """Milliseconds and GFLOP/s of the products of kernels of these sizes [inputs, outputs]."""
    random = np.random.default_rng(0)

    def some(*shape):
        return jax.device_put(random.standard_normal(shape, dtype=np.float32))

    arrays = (
        [some(i, o) for i, o in sizes],
        [some(tokens, i) for i, _ in sizes],
        [some(tokens, o) for _, o in sizes],
    )
    spent = milliseconds(products_of, *arrays)
    return spent, 6 * tokens * sum(i * o for i, o in sizes) / spent / 1e6


def main() -> None:
    shape = SHAPES["T"]
    c, tokens = shape.config(), shape.examples * LENGTH
    D, F, heads = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    kv = D // heads * c["num_key_value_heads"]
    layer, layer_rate = measured([(D, D), (D, kv), (D, kv), (D, D), (D, F), (D, F), (F, D)], tokens)
    head, head_rate = measured([(D, shape.vocab_size)], tokens // 2)
    print(
        f"layer {layer:.1f} ms ({layer_rate:.0f} GFLOP/s), head {head:.1f} ms"
        f" ({head_rate:.0f} GFLOP/s)"
    )
    print(f"products of a step: {shape.layers * layer + head:.0f} ms")


if __name__ == "__main__":
    main()
