"""Do the tests notice a wrong result? Changes to the product whose effect would be silent, one at a
time.

    python -m tests.mutants                    # all of them: half an hour on two cores
    python -m tests.mutants packing-mask flops # those whose name holds one of these words
    python -m tests.mutants --list

Each change (tests/mutants/changes.py) is made in a copy of the tree, and the tests named with it
are run there until one fails. A change that no test notices is a test that is missing, or is
equivalent: then it has no place in the list. tests/test_mutants.py looks that every change still
fits the code; score.csv has what each gave when it was last made.
"""
