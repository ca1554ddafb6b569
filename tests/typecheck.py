"""The checker of annotations at run time: `pytest --jaxtyping-packages=dft_jax,tests.typecheck.checked`.

Every call of every function of the package is checked against its annotations, shapes of arrays
included. An int may stand for a float, as type checkers have it (PEP 484).
"""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
