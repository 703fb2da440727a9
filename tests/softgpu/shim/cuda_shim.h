// Lets g++ compile a .cu file unchanged: CUDA's keywords, built-in variables, vector types, barriers, warp
// operations, atomics and intrinsics, mapped to the fiber runtime (runtime.h).
//
// It is force-included before a kernel (`-include cuda_shim.h`), and so takes no C header: kernels that must
// compile under NVRTC without an include path define uint64_t and INFINITY themselves, in either of two forms.
// What a kernel cannot have here: inline PTX (kernels keep it in intrinsics.cuh, which this folder replaces) and
// `extern __shared__` (kernels write DYN_SHARED(T, name)).
#pragma once
#define SOFTGPU 1

typedef decltype(sizeof(0)) size_t;  // NVRTC knows it without a header
struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

#include "runtime.h"
#include "vector_types.h"

// ---- keywords -------------------------------------------------------------------------------------------------
// Unknown attributes survive the preprocessor, where nvrtc.cpp finds the kernels and their launch bounds.
#define __global__ __attribute__((softgpu_kernel))
#define __launch_bounds__(...) __attribute__((softgpu_bounds(__VA_ARGS__)))
#define __device__
#define __host__
#define __constant__ static const
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __CUDACC_RTC__ 1
#ifdef SOFTGPU_SANITIZER
#define __shared__ static  // one block at a time; a global, so that AddressSanitizer puts red zones around it
#else
#define __shared__ static thread_local  // each worker thread runs its own block
#endif
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(::softgpu::context->dynamic_shared)

// ---- built-in variables ---------------------------------------------------------------------------------------
#define threadIdx (::softgpu::context->thread)
#define blockIdx (::softgpu::context->block)
#define blockDim (::softgpu::context->block_dim)
#define gridDim (::softgpu::context->grid_dim)
#define warpSize 32

// ---- barriers and fences --------------------------------------------------------------------------------------
#define __syncthreads() ((void)::softgpu::barrier(0, __FILE__, __LINE__, 0))
#define __syncthreads_count(p) (::softgpu::barrier(!!(p), __FILE__, __LINE__, 1))
#define __syncthreads_and(p) (::softgpu::barrier(!!(p), __FILE__, __LINE__, 2))
#define __syncthreads_or(p) (::softgpu::barrier(!!(p), __FILE__, __LINE__, 3))
#define __threadfence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __threadfence_block() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __threadfence_system() __atomic_thread_fence(__ATOMIC_SEQ_CST)

#include "atomics.h"
#include "device_math.h"
#include "warp.h"

// ---- what nvrtc.cpp appends for each kernel ---------------------------------------------------------------------
namespace softgpu {
template <class T> struct IsPointer { static constexpr bool value = false; };
template <class T> struct IsPointer<T*> { static constexpr bool value = true; };

template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> { typedef Indices<I...> type; };

// The arguments of a launch arrive as an array of addresses, as cuLaunchKernel takes them; the kernel's own
// signature says how to read each.
template <class... A> struct Signature {
    static constexpr unsigned sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
    static constexpr unsigned char pointers[sizeof...(A) + 1] = {IsPointer<A>::value..., 0};
    template <int... I> static void call(void (*kernel)(A...), void** values, Indices<I...>) {
        kernel(*static_cast<A*>(values[I])...);
    }
    static void thunk(void* kernel, void** values) {
        call(reinterpret_cast<void (*)(A...)>(kernel), values, typename MakeIndices<sizeof...(A)>::type());
    }
};
template <class... A> constexpr unsigned Signature<A...>::sizes[];
template <class... A> constexpr unsigned char Signature<A...>::pointers[];

static thread_local char shared_memory_anchor;
static void* touch_shared_memory() { return &shared_memory_anchor; }
template <class... A> Kernel describe(const char* name, void (*kernel)(A...), unsigned max_threads) {
    typedef Signature<A...> S;
    return {name,       reinterpret_cast<void*>(kernel), S::thunk,    sizeof...(A), S::sizes,
            S::pointers, max_threads,                     touch_shared_memory};
}
constexpr unsigned first_bound() { return 1024; }
template <class... R> constexpr unsigned first_bound(unsigned threads, R...) { return threads; }
}  // namespace softgpu
