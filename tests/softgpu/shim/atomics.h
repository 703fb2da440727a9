// CUDA's atomics as the compiler's own, so that ThreadSanitizer recognises atomics and reports a plain access that
// races with one. Floats have none here: the project's kernels sum in a fixed order, and a float atomic does not
// compile.
#pragma once

namespace softgpu {
template <class T> struct Same { typedef T type; };
template <class T> struct IsInteger { static constexpr bool value = false; };
template <> struct IsInteger<int> { static constexpr bool value = true; };
template <> struct IsInteger<unsigned> { static constexpr bool value = true; };
template <> struct IsInteger<unsigned long> { static constexpr bool value = true; };
template <> struct IsInteger<unsigned long long> { static constexpr bool value = true; };

template <class T, class F> inline T read_modify_write(T* p, F next) {
    static_assert(IsInteger<T>::value, "atomics on floats make results depend on the order of threads");
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, next(old), false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
}  // namespace softgpu

#define SOFTGPU_ATOMIC(name, expression)                                                           \
    template <class T> inline T name(T* p, typename ::softgpu::Same<T>::type v) {                  \
        return ::softgpu::read_modify_write(p, [v](T a) { return T(expression); });                \
    }
SOFTGPU_ATOMIC(atomicAdd, a + v)
SOFTGPU_ATOMIC(atomicSub, a - v)
SOFTGPU_ATOMIC(atomicMax, a < v ? v : a)
SOFTGPU_ATOMIC(atomicMin, v < a ? v : a)
SOFTGPU_ATOMIC(atomicAnd, a & v)
SOFTGPU_ATOMIC(atomicOr, a | v)
SOFTGPU_ATOMIC(atomicXor, a ^ v)
SOFTGPU_ATOMIC(atomicExch, (void(a), v))
SOFTGPU_ATOMIC(atomicInc, a >= v ? 0 : a + 1)
#undef SOFTGPU_ATOMIC
template <class T>
inline T atomicCAS(T* p, typename ::softgpu::Same<T>::type expected, typename ::softgpu::Same<T>::type value) {
    return ::softgpu::read_modify_write(p, [=](T a) { return a == expected ? value : a; });
}
