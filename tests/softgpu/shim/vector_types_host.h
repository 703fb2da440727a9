// runtime.h for host files: the two types that cuda_shim.h otherwise defines before it.
#pragma once
struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
#include "runtime.h"
