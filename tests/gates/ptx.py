"""PTX for the interpreter in tests/softgpu/ptx: what NVRTC makes of some kernels, kept small and committed,
so that the ordinary tests run it without any compiler. `kernels.py write` renews it, `check` compares it.

sm_80's PTX: it is the least that the engine compiles for, and tensor-core and copy instructions are the
same from there on. Only the kernels that tests name are kept, with file and line of each instruction and
no other debug information, compressed: 1 MB of PTX text becomes some 60 KB.
"""

import gzip
import re
from pathlib import Path

from build import ROOT, Source, Toolchain

ASSETS = ROOT / "tests" / "assets" / "ptx"
# File and the kernels that tests run; None keeps all of them.
FIXTURES = {
    "tests/softgpu/ptx/planted.cu": None,
    "kernels/attention.cu": ("attention_d64_bf16",),
    "kernels/attention_backward.cu": ("attention_backward_d64_bf16",),
    "kernels/gelu.cu": ("gelu_bf16", "gelu_backward_bf16"),
    "kernels/column_sum.cu": ("column_partials_bf16", "add_partials_bf16"),
    "kernels/mask_tokens.cu": ("mask_choose_f32", "mask_compact_f32"),
}


def shrink(text, names):
    """The header, the shared declarations and the entries of `names`, with short .loc and .file lines."""
    text = text.rstrip("\0")
    head = re.search(r"\.version.*?\.address_size \d+\n", text, re.S).group(0)
    lines = [head.rstrip()]
    lines += re.findall(r"^(?:\.extern )?\.shared.*$", text, re.M)
    for entry in re.finditer(r"^\.visible \.entry (\w+)\(.*?^\}\n", text, re.M | re.S):
        if names is None or entry.group(1) in names:
            lines.append(entry.group(0).rstrip())
    for number, path in re.findall(r'^\t\.file\t(\d+) "([^"]+)"', text, re.M):
        lines.append(f'\t.file\t{number} "{Path(path).name}"')
    short = re.sub(r"(\.loc\s+\d+ \d+).*", r"\1", "\n".join(lines))
    return re.sub(r"\n\s*\n+", "\n", re.sub(r"^\$L__tmp\d+:\n", "", short, flags=re.M)) + "\n"


def make(options):
    """Every asset's path and bytes."""
    nvrtc = Toolchain().nvrtc
    for file, names in FIXTURES.items():
        source = Source.read(ROOT / file)
        flags = [*options, "--gpu-architecture=compute_80", "--generate-line-info"]
        text = shrink(nvrtc.compile(source, flags, "PTX").decode(), names)
        body = f"// CRC-32 of {source.path.name} with its includes: {source.crc32()}\n{text}"
        yield ASSETS / f"{source.path.stem}.ptx.gz", gzip.compress(body.encode(), 9, mtime=0)


def renew(options, write):
    """Writes the assets, or names those that differ."""
    ASSETS.mkdir(exist_ok=True)
    for path, data in make(options):
        if write:
            path.write_bytes(data)
        elif not path.exists() or gzip.decompress(path.read_bytes()) != gzip.decompress(data):
            yield f"{path.relative_to(ROOT)}: not what NVRTC makes of its source: renew it with `kernels.py write`"
