from tests import typecheck  # noqa: F401 — found there by --jaxtyping-packages
