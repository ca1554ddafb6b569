"""Files that ship with the package, so that the first run needs no download."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
LAB = TINY.parent / "lab"  # the base model of the laboratory
LAB_CLEAN = TINY.parent / "lab_clean"  # its control, which never read a wrong step
LAB_CODE = TINY.parent / "lab_code"  # the base model that writes programs
LAB_VISION = TINY.parent / "lab_vision"  # the base that is shown pictures
