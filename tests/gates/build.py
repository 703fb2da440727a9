"""What NVIDIA's compilers make of a kernel file, read from the machine code.

Two compilers see every file: NVRTC with the engine's own options, because that is what runs on a card
and what the numbers are taken from, and nvcc, because it warns and because a build with it must stay
possible. Neither needs a card or a driver.
"""

import ctypes
import fnmatch
import json
import math
import re
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Version of what `compiled` says: another one forgets what was kept.
FACTS = "1"
# The cards that the project names: A100, H100/H200, B200.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")


class Refused(Exception):
    """One line for the user: what is wrong, where, what to do."""


@dataclass(frozen=True)
class Limits:
    """One multiprocessor's resources (CUDA C++ Programming Guide, "Technical Specifications per Compute
    Capability"; registers are dealt to warps in steps of 256, shared memory to blocks in steps of 128
    bytes with 1 KiB of the system's own: cuda_occupancy.h)."""

    threads: int
    blocks: int
    shared: int
    registers: int = 65536


LIMITS = {
    "sm_80": Limits(2048, 32, 164 * 1024),
    "sm_90": Limits(2048, 32, 228 * 1024),
    "sm_100": Limits(2048, 32, 228 * 1024),
}


def blocks_per_multiprocessor(arch, threads, registers, shared):
    """Blocks of `threads` threads that fit, with `shared` bytes (static and dynamic) each."""
    limits = LIMITS[arch]
    warps = -(-threads // 32)
    by_threads = limits.threads // 32 // warps
    per_warp = -(-registers * 32 // 256) * 256
    # four schedulers share the register file; a warp's registers lie with one of them
    by_registers = 4 * (limits.registers // 4 // per_warp) // warps
    by_shared = limits.shared // (-(-(shared + 1024) // 128) * 128)
    return min(by_threads, limits.blocks, by_registers, by_shared)


@dataclass(frozen=True)
class Demand:
    """A line of launches.txt: `NAME kind=KIND [dynamic_shared=BYTES]`. NAME may hold `*`; KIND is row (16-byte
    loads are demanded), tensor (tensor cores are), or other."""

    name: str
    kind: str
    dynamic: int

    @staticmethod
    def parse(file, number, line):
        name, *words = line.split()
        keys = dict(word.split("=", 1) for word in words if "=" in word)
        kind, dynamic = keys.pop("kind", None), keys.pop("dynamic_shared", "0")
        whole = all("=" in word for word in words) and dynamic.isdigit()
        if keys or not whole or kind not in ("row", "tensor", "other"):
            raise Refused(f"{file}:{number}: must be `NAME kind=row|tensor|other [dynamic_shared=BYTES]`")
        return Demand(name, kind, int(dynamic))

    @staticmethod
    def read(folder):
        file = folder / "launches.txt"
        lines = enumerate(file.read_text().splitlines(), 1)
        return [Demand.parse(file, n, line) for n, line in lines if line.strip() and not line.startswith("#")]

    def covers(self, kernel):
        return fnmatch.fnmatchcase(kernel, self.name)


@dataclass
class Source:
    """A kernel file with the files that it includes."""

    path: Path
    includes: list = field(default_factory=list)

    @staticmethod
    def read(path):
        source = Source(path)
        pending = [path]
        while pending:
            for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', pending.pop(0).read_text(), re.M):
                header = path.parent / name
                header = header if header.exists() else ROOT / "kernels" / name
                if header not in source.includes and header.exists():
                    source.includes.append(header)
                    pending.append(header)
        return source

    def crc32(self):
        """Of the file and then its includes, in the order of their names: tests/gates.rs does the same."""
        crc = zlib.crc32(self.path.read_bytes())
        for header in sorted(self.includes, key=lambda header: header.name):
            crc = zlib.crc32(header.read_bytes(), crc)
        return f"{crc:08x}"


class Toolchain:
    """The wheels beside the running python (toolchain.sh)."""

    def __init__(self):
        home = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        self.cuda = home / "site-packages" / "nvidia" / "cu13"
        self.cuxray = Path(sys.prefix) / "bin" / "cuxray"
        if not self.cuda.is_dir():
            raise Refused("run this with the python that tests/gates/toolchain.sh makes: it has the compilers")
        self.nvrtc = Nvrtc(self.cuda / "lib" / "libnvrtc.so.13")

    def run(self, *command):
        tools = f"{self.cuda / 'bin'}:/usr/bin:/bin"
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, env={"PATH": tools, "HOME": "/tmp"}
        )
        if done.returncode:
            last = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][:3]
            raise Refused(f"{Path(command[0]).name} {command[-1]}: " + " | ".join(last))
        return done.stdout

    def nvcc(self, source, arch, out):
        """Warnings are errors, as they are in the rest of the project."""
        flags = ("-std=c++17", "-cubin", f"-arch={arch}", "-Werror", "all-warnings")
        self.run(self.cuda / "bin" / "nvcc", *flags, "-I", source.path.parent, "-I", ROOT / "kernels", "-o", out, source.path)

    def usage(self, cubin):
        """Registers and shared bytes of each kernel."""
        text = self.run(self.cuda / "bin" / "cuobjdump", "-res-usage", cubin)
        pattern = r"Function (\w+):\s*\n\s*REG:(\d+) STACK:\d+ SHARED:(\d+)"
        return {name: [int(x) for x in rest] for name, *rest in re.findall(pattern, text)}

    def instructions(self, cubin):
        """Each kernel's opcodes, modifiers included, in order."""
        found, now = {}, None
        for line in self.run(self.cuda / "bin" / "cuobjdump", "-sass", cubin).splitlines():
            if match := re.search(r"Function : (\w+)", line):
                now = found.setdefault(match.group(1), [])
            elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
                now.append(match.group(1))
        return found

    def accesses(self, cubin):
        """cuxray's findings by kernel: threads of its launch bounds, (worst ways of a bank conflict,
        conflicting accesses, not analysed accesses), bytes spilled."""
        report = json.loads(self.run(self.cuxray, "report", "--fast", "--json", "--no-cache", cubin))
        found = {}
        for kernel in (k for unit in report["units"] for k in unit["kernels"]):
            a = kernel["access"]
            if a is None:
                raise Refused(f"{cubin.stem}.cu: kernel {kernel['name']} states no __launch_bounds__")
            banks = a["worst_bank_conflict_ways"], a["conflicted_shared_accesses"], a["unanalyzed_count"]
            found[kernel["name"]] = math.prod(a["block_dims"]), *banks
        return found


class Nvrtc:
    """The run-time compiler, through its C interface as the engine calls it: headers by name, no folder."""

    def __init__(self, library):
        self.lib = ctypes.CDLL(str(library))
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p

    def compile(self, source, options, what):
        """`what` is "CUBIN" or "PTX"."""
        program = ctypes.c_void_p()
        names = [header.name.encode() for header in source.includes]
        texts = [header.read_bytes() for header in source.includes]
        count, array = len(names), ctypes.c_char_p * len(names)
        self.check(
            self.lib.nvrtcCreateProgram(
                ctypes.byref(program), source.path.read_bytes(), source.path.name.encode(), count,
                array(*texts), array(*names),
            )
        )  # fmt: skip
        flags = [option.encode() for option in options]
        status = self.lib.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
        if status:
            log = self.take(program, "ProgramLog").decode(errors="replace").strip("\0").strip()
            raise Refused(f"{source.path}: NVRTC refuses it: " + " | ".join(log.splitlines()[:3]))
        binary = self.take(program, what)
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        return binary

    def take(self, program, what):
        size = ctypes.c_size_t()
        self.check(getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self.check(getattr(self.lib, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def check(self, status):
        if status:
            raise Refused(f"NVRTC: {self.lib.nvrtcGetErrorString(status).decode()}")


def engine_options():
    """The options that the engine gives NVRTC besides the architecture: the literals in its source."""
    module = ROOT / "src" / "engine" / "cuda" / "module.rs"
    options = re.findall(r'"(--[^"{]+)"', module.read_text())
    if not options:
        raise Refused(f"{module}: no option of NVRTC found: the gate compiles with the engine's own")
    return options


@dataclass
class Row:
    """One kernel on one architecture: a line of the table."""

    kernel: str
    arch: str
    threads: int
    registers: int
    local: int
    static: int
    dynamic: int
    blocks: int
    occupancy: int
    hmma: int
    ldgsts: int
    ldsm: int
    wide_loads: int
    wide_stores: int
    bank_ways: int
    bank_conflicts: int
    unanalysed: int
    kind: str

    def key(self):
        return self.kernel, self.arch


def wide_share(opcodes, *kinds):
    """Per cent of the global accesses in the code that move 16 bytes or more; -1 without any."""
    of = [op for op in opcodes if op.split(".")[0] in kinds]
    wide = [op for op in of if {"128", "256"} & set(op.replace("ENL2.", "").split("."))]
    return 100 * len(wide) // len(of) if of else -1


def compiled(tools, source, arch, options):
    """What the machine code of each kernel of a file says, by the names of `Row`'s columns."""
    with tempfile.TemporaryDirectory() as folder:
        tools.nvcc(source, arch, Path(folder) / "nvcc.cubin")
        cubin = Path(folder) / f"{source.path.stem}.cubin"
        cubin.write_bytes(tools.nvrtc.compile(source, [*options, f"--gpu-architecture={arch}"], "CUBIN"))
        usage, code, access = tools.usage(cubin), tools.instructions(cubin), tools.accesses(cubin)
    facts = []
    for kernel, (registers, shared) in sorted(usage.items()):
        opcodes = code[kernel]
        count = lambda name: sum(op.split(".")[0] == name for op in opcodes)
        threads, ways, conflicts, unanalysed = access[kernel]
        facts.append(
            {
                "kernel": kernel,
                "arch": arch,
                "threads": threads,
                "registers": registers,
                "local": count("LDL") + count("STL"),
                # from sm_90 on the system's 1 KiB is in it
                "static": shared if arch == "sm_80" else max(0, shared - 1024),
                "hmma": count("HMMA"),
                "ldgsts": count("LDGSTS"),
                "ldsm": count("LDSM"),
                "wide_loads": wide_share(opcodes, "LDG", "LDGSTS"),
                "wide_stores": wide_share(opcodes, "STG"),
                "bank_ways": ways,
                "bank_conflicts": conflicts,
                "unanalysed": unanalysed,
            }
        )
    return facts


def remembered(tools, source, arch, options):
    """`compiled`, kept under target/ by all that it depends on: a file that did not change is not compiled
    again, which takes minutes for all of them."""
    key = zlib.crc32(" ".join([FACTS, str(tools.cuda), source.crc32(), arch, *options]).encode())
    file = ROOT / "target" / "gates" / f"{source.path.stem}-{arch}-{key:08x}.json"
    if not file.exists():
        facts = compiled(tools, source, arch, options)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts))
    return json.loads(file.read_text())


def measure(tools, source, demands, arch, options):
    """The rows of one file on one architecture."""
    rows = []
    for fact in remembered(tools, source, arch, options):
        demand = next((demand for demand in demands if demand.covers(fact["kernel"])), None)
        if demand is None:
            raise Refused(f"{source.path.name}: kernel {fact['kernel']} has no line in launches.txt")
        shared = fact["static"] + demand.dynamic
        blocks = blocks_per_multiprocessor(arch, fact["threads"], fact["registers"], shared)
        occupancy = 100 * blocks * fact["threads"] // LIMITS[arch].threads
        rows.append(Row(**fact, kind=demand.kind, dynamic=demand.dynamic, blocks=blocks, occupancy=occupancy))
    return rows
