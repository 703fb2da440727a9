// Records launches for a later replay under sanitizers (SOFTGPU_RECORD=file): the kernel, its geometry and arguments, and
// the bytes of every allocation that an argument points into. replay.cpp reads the file.
//
// Form, little-endian: magic, then for each launch
//   name (u32 length, bytes) | grid, block 6 x u32 | dynamic shared u32 | arguments u32 | regions u32
//   each region:   u64 bytes, the bytes
//   each argument: u32 region (or kPlain), then u64 offset into it, or u32 size and the value's bytes
#pragma once
#include <cstdint>

namespace softgpu {
constexpr char kRecordMagic[] = "softgpu launches 1\n";
constexpr uint32_t kPlain = 0xffffffffu;
}  // namespace softgpu
