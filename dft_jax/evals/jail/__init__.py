"""Where programs that a model wrote are run: two processes that the kernel confines.

    supervisor   starts both, reads one verdict, kills both (the only file that the product imports)
    selftest     tries to get out by every way that is known, and says which are open
    namespaces   fence D: a process of its own file system, network and process ids
    fences       fences A, B and C: limits, Landlock, and a filter of system calls (calls.py)
    inside       what a confined process does: judging.py in the one, candidate.py in the other
    codec        values between the two, as JSON
    extraction   the program in a completion

Every file but these two, supervisor and selftest, runs by its path in a bare interpreter with the
standard library alone: neither this package nor JAX is imported there.
"""
