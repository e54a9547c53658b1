"""Draws mutants of source files, made by the operators of Cosmic Ray; runs in the environment that
requirements-mutants.txt pins.

stdin: JSON with `files`, `count` and `seed`. stdout: JSON, a list of mutants: `file`, `line` and `column` of the
change, `operator` (Cosmic Ray's name) and `code`, the whole source of the mutated file. A place is drawn first, then
one of the mutants of that place, so that an addition, which can become five other operations, counts no more than a
number.

Left out are mutants that need no test to be noticed, or that no test can notice:
- in annotations, which Python does not use;
- `strict=True` of `zip`, which asserts that lengths are equal that always are;
- arithmetic replaced by bit operations and the reverse, which fail by the types of their operands alone;
- `==` replaced by `is` and the like, which are equal for small integers and short strings;
- the operators that need arguments (renaming of variables).
"""

import ast
import json
import random
import sys
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast  # pyright: ignore[reportMissingImports]  # of an environment of its own
from cosmic_ray.mutating import mutate_code  # pyright: ignore[reportMissingImports]
from cosmic_ray.plugins import get_operator, operator_names  # pyright: ignore[reportMissingImports]

BITS = {"BitOr", "BitAnd", "BitXor", "RShift", "LShift", "Invert"}
IDENTITY = {"Is", "IsNot"}


def usable(name: str) -> bool:
    """Whether an operator of Cosmic Ray makes mutants that are worth a run."""
    if get_operator(name).arguments():
        return False
    family, _, rest = name.removeprefix("core/").partition("_")
    pair = set(rest.split("_"))
    if family in ("ReplaceBinaryOperator", "ReplaceUnaryOperator") and "Delete" not in pair:
        return len(pair & BITS) in (0, len(pair))
    if family == "ReplaceComparisonOperator":
        return len(pair & IDENTITY) in (0, len(pair))
    return True


def left_out(tree: ast.AST) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end of every annotation and of every `strict=`: (line, column) each."""
    nodes = []
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "strict":
            nodes.append(node.value)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes.append(node.returns)
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None]


def places(source: str) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """(line, column) -> the mutants that change something there: operator and occurrence."""
    intervals = left_out(ast.parse(source))
    nodes = list(ast_nodes(get_ast(source)))
    occurrences: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in filter(usable, operator_names()):
        operator = get_operator(name)()
        starts = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(starts):
            if not any(first <= start < last for first, last in intervals):
                occurrences.setdefault(start, []).append((name, occurrence))
    return occurrences


def sample(source: str, count: int, generator: random.Random) -> list[dict]:
    """At most one mutant at a place."""
    mutants = []
    candidates = sorted(places(source).items())
    generator.shuffle(candidates)
    for (line, column), operators in candidates:
        name, occurrence = generator.choice(operators)
        code = mutate_code(source, get_operator(name)(), occurrence)
        if code is not None and differs(code, source):
            mutants.append({"line": line, "column": column, "operator": name, "code": code})
        if len(mutants) == count:
            break
    return sorted(mutants, key=lambda mutant: (mutant["line"], mutant["column"]))


def differs(code: str, source: str) -> bool:
    """Whether the mutant is Python, and not the same program written in another way."""
    try:
        return ast.dump(ast.parse(code)) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """How many mutants of each file: in proportion to its places, and one at least where it has any."""
    total, counts, before = sum(sizes.values()), {}, 0
    for name, size in sizes.items():
        counts[name] = max(min(size, 1), round(count * (before + size) / total) - round(count * before / total))
        before += size
    return counts


def main() -> None:
    request = json.load(sys.stdin)
    sources = {name: Path(name).read_text(encoding="utf-8") for name in request["files"]}
    counts = shares({name: len(places(source)) for name, source in sources.items()}, request["count"])
    mutants = []
    for name, source in sources.items():
        # of the file's own: a change of another file does not change its sample
        generator = random.Random(f"{request['seed']} {Path(name).name}")
        mutants += [{"file": name, **mutant} for mutant in sample(source, counts[name], generator) if counts[name]]
    json.dump(mutants, sys.stdout)


if __name__ == "__main__":
    main()
