// CUDA's vector types with CUDA's alignments: a 16-byte load through a misaligned float4* is a fault on a card,
// and UBSan reports it here.
#pragma once

#define SOFTGPU_VECTOR(T, N)                                                                       \
    struct N##1 { T x; };                                                                          \
    struct alignas(2 * sizeof(T)) N##2 { T x, y; };                                                \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) N##4 { T x, y, z, w; };                \
    inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                           \
    inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }
#define SOFTGPU_VECTOR3(T, N)                                                                      \
    struct N##3 { T x, y, z; };                                                                    \
    inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }

SOFTGPU_VECTOR(float, float)
SOFTGPU_VECTOR3(float, float)
SOFTGPU_VECTOR(double, double)
SOFTGPU_VECTOR3(double, double)
SOFTGPU_VECTOR(int, int)
SOFTGPU_VECTOR3(int, int)
SOFTGPU_VECTOR(unsigned, uint)
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
SOFTGPU_VECTOR(short, short)
SOFTGPU_VECTOR(unsigned short, ushort)
SOFTGPU_VECTOR(signed char, char)
SOFTGPU_VECTOR(unsigned char, uchar)
SOFTGPU_VECTOR(long long, longlong)
SOFTGPU_VECTOR(unsigned long long, ulonglong)
#undef SOFTGPU_VECTOR
#undef SOFTGPU_VECTOR3
