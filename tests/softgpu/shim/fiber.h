// Switching between fibers: one per CUDA thread, each with its own stack.
//
// On x86-64 a switch saves the six registers that a call must keep (3 ns); elsewhere, ucontext (300 ns, it saves the
// signal mask with a system call). Sanitizers are told of each switch through their fiber interfaces, found by weak
// symbols: this file is the same in every build.
#pragma once
#include <cstddef>
#include <cstdint>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

extern "C" {
__attribute__((weak)) void* __tsan_create_fiber(unsigned);
__attribute__((weak)) void __tsan_destroy_fiber(void*);
__attribute__((weak)) void __tsan_switch_to_fiber(void*, unsigned);
__attribute__((weak)) void* __tsan_get_current_fiber();
__attribute__((weak)) void __tsan_acquire(void*);
__attribute__((weak)) void __tsan_release(void*);
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
}

namespace softgpu {
inline bool has_tsan() { return __tsan_create_fiber != nullptr; }
inline bool has_asan() { return __sanitizer_start_switch_fiber != nullptr && !has_tsan(); }

// Where a fiber stands. Small: a switch touches two of them, and a block has up to 1024.
#if defined(__x86_64__)
typedef void* Registers;  // the stack pointer; all else is on the stack
extern "C" void softgpu_switch(void** save, void* load);
asm(R"(
.text
.type softgpu_switch, @function
softgpu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
inline void prepare(Registers& fiber, char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes - 64);  // stack and bytes are multiples of 16
    *--top = nullptr;                                            // where entry would return to; it never does
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber = top;
}
inline void jump(Registers& from, Registers& to) { softgpu_switch(&from, to); }
#else
typedef ucontext_t Registers;
inline void prepare(Registers& fiber, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&fiber);
    fiber.uc_stack.ss_sp = stack;
    fiber.uc_stack.ss_size = bytes;
    fiber.uc_link = nullptr;
    makecontext(&fiber, entry, 0);
}
inline void jump(Registers& from, Registers& to) { swapcontext(&from, &to); }
#endif

// What sanitizers must know about the fiber that is switched to.
struct Destination {
    void* tsan;
    const void* stack;
    size_t bytes;
};
// `last`: the leaving fiber does not come back.
inline void switch_watched(Registers& from, Registers& to, const Destination& destination, bool last) {
    void* fake_stack = nullptr;
    if (has_tsan()) __tsan_switch_to_fiber(destination.tsan, 1 /* no order between the two */);
    if (has_asan()) __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack, destination.stack, destination.bytes);
    jump(from, to);
    if (has_asan()) __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}
inline void fiber_started() {
    if (has_asan()) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}
}  // namespace softgpu
