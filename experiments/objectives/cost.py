"""What a training step costs with each objective, as a multiple of SFT's.

python -m experiments.objectives.cost [--rounds=15] [--out=FOLDER]

One process and one state, which every objective's program takes on from the last one's: a decoder
of 2 layers and width 128 with 8,192 tokens in its vocabulary, 8 rows of 256 tokens, half of them
trained, on the CPU. The head is a larger part of such a step than of a real one's. A round is one
step of each objective, in an order drawn anew; SFT has two, of which the second says how far two
equal programs are apart. A ratio is that of an objective's step to SFT's first in the same round:
of processor time, which other work on the machine hardly changes, and of the clock. Writes
cost_rounds.csv and, with medians, cost.csv, which it prints.
"""

import csv
import pathlib
import time

import jax
import numpy as np

from dft_jax import sharding
from dft_jax.losses import objectives
from dft_jax.models import model as models
from dft_jax.models.spec import DecoderSpec, LayerSpec, Rope
from dft_jax.training.state import init_params, init_state
from dft_jax.training.step import make_hyperparameters
from dft_jax.types import Batch, Frozen
from experiments import common
from experiments.performance.contenders import adapter

HERE = pathlib.Path(__file__).parent
SPEC = DecoderSpec(
    vocab_size=8192,
    hidden_size=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=384,
    rms_epsilon=1e-6,
    tie_embeddings=True,
    max_length=256,
    layers=(LayerSpec(Rope(1e4)),) * 2,
)
ROWS, LENGTH = 8, 256
AGAIN = "sft, again"


def make_batch() -> Batch:
    """One step of one micro-batch, [1, B, L]: two examples a row, whose second halves are
    trained.
    """
    rng = np.random.default_rng(0)
    shape = (1, ROWS, LENGTH)
    half = LENGTH // 2
    place_L = np.arange(LENGTH)
    return Batch(
        tokens_BL=rng.integers(SPEC.vocab_size, size=shape, dtype=np.int32),
        targets_BL=rng.integers(SPEC.vocab_size, size=shape, dtype=np.int32),
        mask_BL=np.broadcast_to(place_L % half >= half // 2, shape),
        segments_BL=np.broadcast_to(1 + place_L // half, shape).astype(np.int32),
        positions_BL=np.broadcast_to(place_L % half, shape).astype(np.int32),
        most_segments=2,
    )


class Bench:
    """The state that all objectives train, and the program of each."""

    def __init__(self, names: list[str]):
        self.config = adapter.make_config()
        options = {name: self.config.model[name] for name in models.OPTIONS}
        built = models.build(SPEC, adapter.one_device_mesh(), **options)
        self.model = models.with_attention(built, self.config.model.attention)
        made = {name: adapter.make_step(self.config, self.model, name) for name in names}
        self.steps = {name: step for name, (_, step) in made.items()}
        optimizer = made[names[0]][0]
        params = init_params("random", 0, pathlib.Path(), self.model)
        self.reference = jax.tree.map(lambda leaf: leaf.copy(), params)
        self.state = init_state(params, self.model, optimizer)
        self.given = make_hyperparameters(self.config.optimizer, 0, 10_000, self.model.mesh)
        self.batch = sharding.device_batch(make_batch(), self.model.mesh, ROWS)

    def turn(self, name: str) -> tuple[float, float]:
        """Milliseconds of a step, on the clock and of processor time."""
        compares = objectives.make_objective(name).needs_reference
        frozen = Frozen(self.given, self.reference if compares else None)
        with models.matmul_precision(self.config.model.compute_dtype):
            start, start_cpu = time.perf_counter(), time.process_time()
            self.state, sums = self.steps[name](frozen, self.state, self.batch)
            jax.block_until_ready((self.state, sums))
        spent, spent_cpu = time.perf_counter() - start, time.process_time() - start_cpu
        assert np.isfinite(float(sums["loss"])), name
        return 1e3 * spent, 1e3 * spent_cpu


def measure(rounds: int) -> dict[str, np.ndarray]:
    """Of each objective [rounds, 2]: milliseconds on the clock and of processor time."""
    names = list(objectives.OBJECTIVES)
    bench = Bench(names)
    for name in names:
        bench.turn(name)  # compiles
        print(f"compiled {name}", flush=True)
    found: dict[str, list] = {name: [] for name in [AGAIN, *names]}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for name in rng.permutation(list(found)):
            found[name].append(bench.turn("sft" if name == AGAIN else str(name)))
    return {name: np.array(turns) for name, turns in found.items()}


def table(found: dict[str, np.ndarray]) -> list[dict[str, str]]:
    """A line for each objective: medians over rounds; of processor time the middle half as well."""
    lines = []
    for name, turns in found.items():
        needs = ()
        if name in objectives.OBJECTIVES:
            needs = objectives.OBJECTIVES[name].needs
        ratios = turns / found["sft"]
        low, ratio, high = np.percentile(ratios[:, 1], (25, 50, 75))
        lines.append(
            {
                "objective": name,
                "needs": " ".join(needs),
                "processor_ms": f"{np.median(turns[:, 1]):.0f}",
                "processor_ratio": f"{ratio:.3f}",
                "ratio_25": f"{low:.3f}",
                "ratio_75": f"{high:.3f}",
                "clock_ms": f"{np.median(turns[:, 0]):.0f}",
                "clock_ratio": f"{np.median(ratios[:, 0]):.3f}",
            }
        )
    return sorted(lines, key=lambda line: (line["needs"], line["objective"]))


def write(file: pathlib.Path, lines: list[dict[str, str]]) -> None:
    with open(file, "w", newline="") as handle:
        writer = csv.DictWriter(handle, lines[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    arguments = parser.parse_args()
    found = measure(arguments.rounds)
    rounds = []
    for name, turns in found.items():
        for number, (clock, processor) in enumerate(turns):
            row = {"objective": name, "round": str(number)}
            rounds.append(row | {"clock_ms": f"{clock:.1f}", "processor_ms": f"{processor:.1f}"})
    write(arguments.out / "cost_rounds.csv", rounds)
    lines = table(found)
    write(arguments.out / "cost.csv", lines)
    print(common.markdown_table(lines))


if __name__ == "__main__":
    main()
