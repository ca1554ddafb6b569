"""Answers that would run code if anything evaluated them. `CANARY` stands for a file that must not
come to be.

As a command (answers as JSON on stdin) it compares each in this process, without the worker's
guard, and prints every event of Python's audit hooks that a comparison has no business to raise.
"""

import json
import sys

from dft_jax.evals.graders import pool

_CALLS = [
    "open('CANARY','w').write('x')",
    "__import__('os').system('touch CANARY')",
    "__import__('subprocess').Popen(['touch','CANARY'])",
    "__import__('pathlib').Path('CANARY').touch()",
    "eval(\"open('CANARY','w')\")",
    "exec(\"open('CANARY','w')\")",
    "compile('1','CANARY','exec')",
    "().__class__.__base__.__subclasses__()",
    "[c for c in ().__class__.__base__.__subclasses__() if c.__name__=='Popen'][0]"
    "(['touch','CANARY'])",
    "(lambda: open('CANARY','w'))()",
    "getattr(__import__('os'),'system')('touch CANARY')",
    "__builtins__['open']('CANARY','w')",
    "globals()['__builtins__']",
    "Symbol('x').__init__.__globals__['__builtins__']['open']('CANARY','w')",
    "sympify(\"open('CANARY','w')\")",
    "Integer(open('CANARY','w').fileno())",
    "lambdify(x,'open(1)')(1)",
    "S('open(1)')",
    "__import__('socket').create_connection(('127.0.0.1',9))",
    "__import__('ctypes').CDLL(None).system(b'touch CANARY')",
    "__import__('shutil').rmtree('CANARY')",
    "breakpoint()",
    "exit()",
    "print('x')",
    "1if open('CANARY','w')else 2",
    "f\"{open('CANARY','w')}\"",
    "x:=open('CANARY','w')",
    "1+__import__('os').getpid()",
    "2**__import__('os').fork()",
]
_LATEX = [
    r"\text{__import__('os').system('touch CANARY')}",
    r"\mathrm{eval}(\text{open('CANARY','w')})",
    r"\operatorname{exec}(open('CANARY','w'))",
    r"\operatorname{system}(touch CANARY)",
    r"\input{/etc/passwd}",
    r"\write18{touch CANARY}",
    r"\immediate\write18{touch CANARY}",
    r"\frac{__import__('os')}{1}",
    r"\sqrt{open('CANARY','w')}",
    r"x_{__import__('os').system('touch CANARY')}",
    r"\variable{__import__('os').system('touch CANARY')}",
    r"\gcd(open('CANARY','w'), 2)",
    r"\max(1.5, __import__('os').getpid())",
    r"\begin{pmatrix} open('CANARY','w') & exec('1') \end{pmatrix}",
    r"\int open('CANARY','w') dx",
    r"f(__import__('os'))",
    r"1.5e__import__('os')",
    r"9999__import__('os')",
    r"\lim_{x \to eval('1')} x",
]
PAYLOADS = _CALLS + _LATEX


def is_suspect(event: str, args: tuple) -> bool:
    if event in ("compile", "exec"):
        name = args[1] if event == "compile" else args[0].co_filename
        name = name.decode() if isinstance(name, bytes) else str(name)
        return not (name.endswith(".py") or name.startswith("<frozen "))
    if event == "open":
        return (
            isinstance(args[1], str)
            and any(letter in args[1] for letter in "wax+")
            or bool(args[2] & 3)
        )
    return event.startswith(
        ("os.", "subprocess.", "socket.", "ctypes.", "shutil.")
    ) and event not in ("os.listdir",)


if __name__ == "__main__":
    from dft_jax.evals.graders import pool

    sys.dont_write_bytecode = True
    pool.patch_math_verify()
    comparisons = {"strict": pool.strict_equal, "paper": pool.paper_equal}
    for compare in comparisons.values():
        for warm in ("2x+1", "(1,2)", r"\frac{1}{2}", "x=1"):
            compare("x+3", warm)
    seen, verdicts = [], []

    def record(event, args):
        if is_suspect(event, args):
            seen.append([event, repr(args)[:300]])

    sys.addaudithook(record)
    for answer, reference in json.load(sys.stdin):
        for compare in comparisons.values():
            verdicts.append(pool.judge(compare, answer, reference))
    print(json.dumps({"events": seen, "verdicts": verdicts}))
