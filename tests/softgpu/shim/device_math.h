// CUDA's mathematics through libm's and the compiler's functions. The fast ones (__expf, rsqrtf) are exact here and
// approximate on a card, so this device does not show what they cost in accuracy.
#pragma once

extern "C" {
float expf(float) noexcept(true); float exp2f(float) noexcept(true); float logf(float) noexcept(true);
float log2f(float) noexcept(true); float log1pf(float) noexcept(true); float expm1f(float) noexcept(true);
float tanhf(float) noexcept(true); float erff(float) noexcept(true); float erfcf(float) noexcept(true);
float powf(float, float) noexcept(true); float sinf(float) noexcept(true); float cosf(float) noexcept(true);
double exp(double) noexcept(true); double log(double) noexcept(true); double tanh(double) noexcept(true);
double erf(double) noexcept(true); double pow(double, double) noexcept(true);
int printf(const char*, ...);
}
extern "C" {  // these compile to instructions: the compiler knows them, and errno is off
float sqrtf(float) noexcept(true); float fabsf(float) noexcept(true); float floorf(float) noexcept(true);
float ceilf(float) noexcept(true); float rintf(float) noexcept(true); float truncf(float) noexcept(true);
float roundf(float) noexcept(true); float fmaxf(float, float) noexcept(true); float fminf(float, float) noexcept(true);
float copysignf(float, float) noexcept(true); float fmaf(float, float, float) noexcept(true);
float fmodf(float, float) noexcept(true); double sqrt(double) noexcept(true); double fabs(double) noexcept(true);
double fma(double, double, double) noexcept(true);
}
inline bool isnan(float x) { return __builtin_isnan(x); }
inline bool isinf(float x) { return __builtin_isinf(x); }
inline bool isfinite(float x) { return __builtin_isfinite(x); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return (int)rintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline unsigned __float2uint_rn(float x) { return (unsigned)rintf(x); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }

template <class T> inline T max(T a, T b) { return a < b ? b : a; }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline int abs(int x) { return x < 0 ? -x : x; }

namespace softgpu {
template <class To, class From> inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace softgpu
inline int __float_as_int(float x) { return ::softgpu::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return ::softgpu::bits<unsigned>(x); }
inline float __int_as_float(int x) { return ::softgpu::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return ::softgpu::bits<float>(x); }
inline long long __double_as_longlong(double x) { return ::softgpu::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return ::softgpu::bits<double>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned s) {
    return s & 31 ? hi << (s & 31) | lo >> (32 - (s & 31)) : hi;
}
inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) r |= (unsigned)(both >> ((s >> 4 * i & 7) * 8) & 0xff) << 8 * i;
    return r;
}

// Caches are not modelled.
template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldca(const T* p) { return *p; }
template <class T> inline T __ldlu(const T* p) { return *p; }
template <class T> inline void __stcs(T* p, T v) { *p = v; }
template <class T> inline void __stcg(T* p, T v) { *p = v; }
template <class T> inline void __stwt(T* p, T v) { *p = v; }
