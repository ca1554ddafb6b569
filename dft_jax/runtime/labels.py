"""Names of runs and models in pictures."""


def plain(name: str) -> str:
    r"""A name as matplotlib is to be given it, so that a picture shows it as it is.

    It leaves a name that begins with _ out of legends, and reads what stands between two $ as
    mathematics, which may end in an exception: `$\frac$` is no fraction.
    """
    name = name.replace("$", r"\$")
    if name.startswith("_"):
        name = "\u200b" + name  # a space without width
    return name
