// The interface between compiled kernels and the fiber runtime. Kernels, the driver and the sanitizer programs
// include it; like cuda_shim.h it takes no C header.
#pragma once

namespace softgpu {
// What a CUDA thread can ask about itself; the scheduler rewrites it at each switch of fibers.
struct Context {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
    unsigned lane, warp;
    void* dynamic_shared;
};
// One a worker thread. Initial-exec: eight bytes fit the loader's reserve, and reading it costs one instruction.
extern __thread Context* context __attribute__((tls_model("initial-exec")));

// An `extern "C" __global__` function as the generated trailer describes it.
struct Kernel {
    const char* name;
    void* function;
    void (*thunk)(void* function, void** values);
    unsigned arguments;
    const unsigned* sizes;           // [arguments] bytes
    const unsigned char* pointers;   // [arguments] 1 where the argument is a pointer
    unsigned max_threads;            // from __launch_bounds__
    void* (*touch)();                // makes the calling thread's copy of the static shared memory
};

// __syncthreads and its reductions. kind: 0 nothing, 1 count, 2 and, 3 or.
int barrier(int predicate, const char* file, int line, int kind);

// Waits until all lanes of `mask` are here, then runs `complete` once with the lanes' payloads (null where a lane
// is not in the mask). `orders_memory`: as the manual says, __syncwarp does, shuffles and votes do not.
typedef void (*Complete)(unsigned mask, void** payloads);
void collective(unsigned mask, Complete complete, void* payload, const char* what, const char* file, int line,
                bool orders_memory);
unsigned active_mask();

// cp.async: copies are recorded when issued and carried out by the wait that covers their group.
void copy_issue(void* to, const void* from, bool valid);
void copy_commit();
struct Copy {
    void* to;
    const void* from;
    bool valid;
    unsigned group;
};
// The next copy of a group that a wait leaving `pending` groups open must deliver; false when there is none.
bool copy_next(unsigned pending, Copy* copy);

bool is_shared(const void* address);  // inside this block's shared memory (plain build; else always true)
// Reports the fault with kernel, block and thread, and abandons the launch.
[[noreturn]] void fault(const char* text, const char* file, int line);

struct Launch {
    const Kernel* kernel;
    dim3 grid, block;
    unsigned dynamic_shared;         // bytes
    void** values;                   // addresses of the arguments
};
// In a program of several .cu files: each announces its kernels before main.
void collect(const Kernel* table, unsigned count);
// Order in which threads of a block and blocks of a grid start: SOFTGPU_ORDER=forward|reverse|random:SEED.
struct Order {
    enum Kind { Forward, Reverse, Random } kind = Forward;
    unsigned long long seed = 0;
};
const Order& chosen_order();
// Runs the grid; true when nothing was reported.
bool run_grid(const Launch& launch, const Order& order);
}  // namespace softgpu
