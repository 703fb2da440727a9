"""Gates on what NVIDIA's compilers make of kernels/*.cu, for sm_80, sm_90 and sm_100, without a card.

    python=$(tests/gates/toolchain.sh)/python
    $python tests/gates/kernels.py check      # against the committed kernels/TABLE.md
    $python tests/gates/kernels.py write      # renew the table; a worse number needs --accept-worse
    $python tests/gates/kernels.py selftest   # planted mistakes are found

kernels/launches.txt names every kernel with what its machine code does not say: its kind, and the
dynamic shared memory that its launcher gives it.

What fails, one line each: a file that either compiler refuses or warns about; local memory (spills, or
an array that is indexed at run time); a `tensor` kernel in bf16 without tensor-core instructions; a
`row` kernel without 16-byte loads; a block that fits no multiprocessor; any number of the table that got
worse; a table that is not of these sources. An ordinary test (tests/gates.rs) holds the table to the
sources without any of this.
"""

import argparse
import concurrent.futures
import dataclasses
import re
import sys
from pathlib import Path

import ptx
from build import ARCHITECTURES, ROOT, Demand, Refused, Row, Source, Toolchain, engine_options, measure

HEADER = """# Kernels as compiled

Made by `tests/gates/kernels.py write` (NVRTC of CUDA 13.2 with the engine's options; nothing here was
measured on a card). Registers, shared memory and blocks are a thread's, a block's and a multiprocessor's.
`local`: instructions that load from or store to local memory (spills). Tensor-core (HMMA), asynchronous copy (LDGSTS) and
ldmatrix (LDSM) instructions are counted in the machine code, and of its global loads and stores the per cent
that move 16 bytes or more (-1: there are none). `bank`: the worst bank conflict that cuxray proves, in ways;
`conflicts`, `unanalysed`: accesses with one, and accesses that it cannot judge.

## Sources

| file | CRC-32 with its includes |
|---|---|
"""
COLUMNS = [field.name for field in dataclasses.fields(Row)]
NUMBERS = {field.name for field in dataclasses.fields(Row) if field.type is int}
# Which way is worse; the other columns are not judged.
WORSE_IF_MORE = ("registers", "local", "static", "dynamic", "bank_ways", "bank_conflicts")
WORSE_IF_LESS = ("blocks", "occupancy", "hmma", "ldgsts", "ldsm", "wide_loads", "wide_stores")


def sources(folder):
    return [Source.read(path) for path in sorted(Path(folder).glob("*.cu"))]


def measure_all(files, demands, options):
    tools = Toolchain()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        work = [(tools, file, demands, arch, options) for file in files for arch in ARCHITECTURES]
        parts = [pool.submit(measure, *one) for one in work]
        return sorted((row for part in parts for row in part.result()), key=Row.key)


def broken_rules(rows):
    """Lines about kernels that no table may hold."""
    for row in rows:
        name = f"{row.kernel} on {row.arch}"
        if row.local:
            yield f"{name}: {row.local} instructions on local memory: it spills, or indexes an array at run time"
        if row.blocks == 0:
            yield f"{name}: {row.threads} threads with {row.static + row.dynamic} bytes do not fit a multiprocessor"
        if row.kind == "tensor" and row.kernel.endswith("_bf16") and not row.hmma:
            yield f"{name}: no tensor-core instruction"
        if row.kind == "row" and row.wide_loads <= 0:
            yield f"{name}: a row kernel without 16-byte loads"


def granted(registers):
    """Registers that a multiprocessor gives a thread: in steps of 8. The compiler's own number differs by
    some from one folder of the sources to another (94 and 96 were seen), which costs nothing."""
    return -(-registers // 8) * 8


def worsened(rows, before):
    """Lines about numbers that got worse against the table `before`."""
    old = {row.key(): row for row in before}
    for row in rows:
        if (was := old.get(row.key())) is None:
            continue
        for column in WORSE_IF_MORE + WORSE_IF_LESS:
            a, b = getattr(was, column), getattr(row, column)
            if column == "registers":
                a, b = granted(a), granted(b)
            if b > a if column in WORSE_IF_MORE else b < a:
                yield f"{row.kernel} on {row.arch}: {column} {a} -> {b}"


def render(files, rows):
    lines = [HEADER.rstrip()]
    lines += [f"| {file.path.name} | {file.crc32()} |" for file in files]
    lines += ["", "## Numbers", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(getattr(row, column)) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def parse(table):
    """The rows of a table as `render` writes it; none where there is no table yet."""
    text = table.read_text() if table.exists() else ""
    cells = (re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line.startswith("| "))
    rows = [dict(zip(COLUMNS, row)) for row in cells if len(row) == len(COLUMNS) and row != COLUMNS]
    return [Row(**{k: int(v) if k in NUMBERS else v for k, v in row.items()}) for row in rows]


def of_sources(text):
    """A table's part about the sources, without the numbers, which may differ where none is worse."""
    return text.partition("## Numbers")[0]


def gate(folder, table, options, write=False, accept_worse=False):
    """All findings, one line each; none is a pass."""
    files = sources(folder)
    if not files:
        raise Refused(f"{folder}: no kernel there")
    rows = measure_all(files, Demand.read(folder), options)
    findings = list(broken_rules(rows))
    worse = list(worsened(rows, parse(table)))
    if not (write and accept_worse):
        findings += worse
    text = render(files, rows)
    if write and not findings:
        table.write_text(text)
    elif not write and not worse and (not table.exists() or of_sources(table.read_text()) != of_sources(text)):
        findings.append(f"{table}: not of these sources: renew it with `kernels.py write` and look at what changed")
    if not findings:
        print(f"{len(files)} files, {len({row.kernel for row in rows})} kernels on {', '.join(ARCHITECTURES)}: good")
    return findings


def selftest(options):
    """The gate on tests/gates/planted: each file's first line says what must be found in it."""
    wrong = []
    folder = Path(__file__).parent / "planted"
    demands = Demand.read(folder)
    for file in sources(folder):
        expected = re.match(r"// planted: (.*)", file.path.read_text()).group(1)
        try:
            rows = measure_all([file], demands, options)
            found = list(broken_rules(rows))
            better = [dataclasses.replace(row, registers=row.registers - 8) for row in rows]
            found += [f"worse: {line}" for line in worsened(rows, better)]
        except Refused as e:
            found = [str(e)]
        report = next((line for line in found if expected in line), None)
        print(f"{file.path.name}: {report or 'NOT FOUND: ' + expected}")
        if report is None:
            wrong.append(f"{file.path.name}: the planted mistake was not found: {expected}")
    return wrong


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("command", choices=("check", "write", "selftest"))
    args.add_argument("--kernels", type=Path, default=ROOT / "kernels", help="folder of the .cu files")
    args.add_argument("--accept-worse", action="store_true", help="write a table whose numbers got worse")
    args = args.parse_args()
    try:
        options = engine_options()
        if args.command == "selftest":
            findings = selftest(options)
        else:
            table = args.kernels / "TABLE.md"
            write = args.command == "write"
            findings = list(ptx.renew(options, write)) if args.kernels == ROOT / "kernels" else []
            findings += gate(args.kernels, table, options, write, args.accept_worse)
    except Refused as e:
        findings = [str(e)]
    for line in findings:
        print(f"kernels.py: {line}", file=sys.stderr)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
