"""The TPU table: no TPU was measured, but Google's compiler runs on a machine with CPUs alone.

python -m experiments.performance.tpu --aot [--out=FOLDER]      # needs libtpu; see README.md

Compiles the training step for v5e, v5p and v6e into tpu_aot.csv.
"""

import sys
from pathlib import Path

from experiments import common
from experiments.performance import aot_tables

HERE = Path(__file__).parent


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results")
    parser.add_argument("--aot", action="store_true", required=True, help="compile, without a TPU")
    parser.add_argument("--cases", default="", help="some by number, with commas; else all")
    parser.add_argument("--texts", type=Path, help="folder for the programs' texts")
    parser.add_argument("--again", action="store_true", help="compile what is there already")
    arguments = parser.parse_args()
    sys.exit(aot_tables.tpu(arguments.out, arguments.cases, arguments.again, arguments.texts))


if __name__ == "__main__":
    main()
