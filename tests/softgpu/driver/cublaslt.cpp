// libcublasLt.so: matrix products in f32 and bf16 (f32 accumulation) with the epilogues of cuBLASLt, as an operation on
// the software device's streams. Handles, descriptors and checks; the arithmetic is in gemm.cpp.
#include "gemm.h"
#include <cstring>

using namespace softgpu;

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_16BF = 75, COMPUTE_32F_FAST_TF32 = 77 };

struct Layout {
    int type;
    uint64_t rows, cols;
    int64_t ld;
    int order = 0;  // 0 column, 1 row
    int batch = 1;
    int64_t stride = 0;
};
struct Description {
    int compute, scale;
    int pointer_mode = 0, transpose_a = 0, transpose_b = 0;
    unsigned epilogue = 1;
    void* bias = nullptr;
    void* aux = nullptr;
    int64_t aux_ld = 0;
    int bias_type = -1, aux_type = -1;
    int64_t bias_stride = 0;
};
struct Preference {
    uint64_t workspace = 0;
};
struct Algorithm {
    uint64_t data[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
static const uint64_t kMagic = 0x736f667467707521u;
static const size_t kWorkspace = 65536;  // what an algorithm here claims to need, so that a missing workspace is noticed

SOFTGPU_API int cublasLtCreate(void** handle) { return *handle = new int(0), SUCCESS; }
SOFTGPU_API int cublasLtDestroy(void* handle) { return delete static_cast<int*>(handle), SUCCESS; }
SOFTGPU_API size_t cublasLtGetVersion() { return 120800; }
SOFTGPU_API int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t cols, int64_t ld) {
    return *layout = new Layout{type, rows, cols, ld}, SUCCESS;
}
SOFTGPU_API int cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, SUCCESS; }
SOFTGPU_API int cublasLtMatmulDescCreate(Description** d, int compute, int scale) {
    return *d = new Description{compute, scale}, SUCCESS;
}
SOFTGPU_API int cublasLtMatmulDescDestroy(Description* d) { return delete d, SUCCESS; }
SOFTGPU_API int cublasLtMatmulPreferenceCreate(Preference** p) { return *p = new Preference, SUCCESS; }
SOFTGPU_API int cublasLtMatmulPreferenceDestroy(Preference* p) { return delete p, SUCCESS; }

template <class T> static int assign(T& field, const void* value, size_t bytes) {
    if (bytes != sizeof(T)) {
        complain("cublasLt: an attribute of " + std::to_string(sizeof(T)) + " bytes is set with " + std::to_string(bytes));
        return INVALID_VALUE;
    }
    return memcpy(&field, value, bytes), SUCCESS;
}
static int unknown(const char* what, int attribute) {
    complain(std::string("cublasLt: ") + what + " attribute " + std::to_string(attribute) + " is not known to softgpu");
    return NOT_SUPPORTED;
}
SOFTGPU_API int cublasLtMatrixLayoutSetAttribute(Layout* l, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 0: return assign(l->type, value, bytes);
        case 1: return assign(l->order, value, bytes);
        case 2: return assign(l->rows, value, bytes);
        case 3: return assign(l->cols, value, bytes);
        case 4: return assign(l->ld, value, bytes);
        case 5: return assign(l->batch, value, bytes);
        case 6: return assign(l->stride, value, bytes);
        default: return unknown("matrix layout", attribute);
    }
}
SOFTGPU_API int cublasLtMatmulDescSetAttribute(Description* d, int attribute, const void* value, size_t bytes) {
    switch (attribute) {
        case 0: return assign(d->compute, value, bytes);
        case 1: return assign(d->scale, value, bytes);
        case 2: return assign(d->pointer_mode, value, bytes);
        case 3: return assign(d->transpose_a, value, bytes);
        case 4: return assign(d->transpose_b, value, bytes);
        case 7: return assign(d->epilogue, value, bytes);
        case 8: return assign(d->bias, value, bytes);
        case 10: return assign(d->bias_stride, value, bytes);
        case 11: return assign(d->aux, value, bytes);
        case 12: return assign(d->aux_ld, value, bytes);
        case 22: return assign(d->aux_type, value, bytes);
        case 26: return assign(d->bias_type, value, bytes);
        default: return unknown("matmul", attribute);
    }
}
SOFTGPU_API int cublasLtMatmulPreferenceSetAttribute(Preference* p, int attribute, const void* value, size_t bytes) {
    if (attribute == 1) return assign(p->workspace, value, bytes);  // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
    return SUCCESS;  // the other attributes guide a search that does not happen here
}

// Shapes, types and leading dimensions as the library checks them; empty when they agree.
static std::string wrong_with(const Description& d, const Layout& a, const Layout& b, const Layout& c, const Layout& o) {
    auto shape = [](const Layout& l, int t) { return t ? std::make_pair(l.cols, l.rows) : std::make_pair(l.rows, l.cols); };
    auto left = shape(a, d.transpose_a), right = shape(b, d.transpose_b);
    if (left.second != right.first || left.first != o.rows || right.second != o.cols || c.rows != o.rows || c.cols != o.cols)
        return "shapes that do not agree: A " + std::to_string(left.first) + "x" + std::to_string(left.second) + ", B " +
               std::to_string(right.first) + "x" + std::to_string(right.second) + ", D " + std::to_string(o.rows) + "x" + std::to_string(o.cols);
    for (const Layout* l : {&a, &b, &c, &o}) {
        if (l->type != kF32 && l->type != kBF16) return "a type that is neither f32 nor bf16";
        if (l->order != 0 && l->order != 1) return "an order that is neither column nor row";
        if (l->ld < static_cast<int64_t>(l->order ? l->cols : l->rows)) return "a leading dimension smaller than the matrix";
    }
    if (a.type != b.type) return "A and B of different types";
    if (a.type == kF32 && o.type != kF32) return "f32 operands with a bf16 result";
    if (c.type != o.type) return "C and D of different types";
    if (d.scale != kF32) return "a scale type other than f32";
    if (d.compute != COMPUTE_32F && d.compute != COMPUTE_32F_PEDANTIC && d.compute != COMPUTE_32F_FAST_TF32 && d.compute != COMPUTE_32F_FAST_16BF)
        return "a compute type other than 32F";
    if (!known_epilogue(d.epilogue)) return "epilogue " + std::to_string(d.epilogue) + ", which softgpu does not have";
    if (a.batch != o.batch || b.batch != o.batch || c.batch != o.batch) return "batch counts that differ";
    return "";
}

SOFTGPU_API int cublasLtMatmulAlgoGetHeuristic(void*, Description* d, Layout* a, Layout* b, Layout* c, Layout* o, Preference* p,
                                               int asked, Heuristic* results, int* found) {
    *found = 0;
    std::string wrong = wrong_with(*d, *a, *b, *c, *o);
    if (!wrong.empty()) {
        complain("cublasLtMatmulAlgoGetHeuristic: " + wrong);
        return NOT_SUPPORTED;
    }
    if (asked < 1) return INVALID_VALUE;
    results[0] = Heuristic{{{kMagic, std::min<uint64_t>(kWorkspace, p ? p->workspace : 0)}}, 0, SUCCESS, 1.0f, {}};
    results[0].workspace = results[0].algorithm.data[1];
    return *found = 1, SUCCESS;
}

static Matrix matrix(const Layout& l, const void* data, int transpose) {
    Matrix m{const_cast<void*>(data), l.type, static_cast<size_t>(l.rows), static_cast<size_t>(l.cols), 1, static_cast<size_t>(l.ld)};
    if (l.order) std::swap(m.row_step, m.col_step);
    if (transpose) {
        std::swap(m.rows, m.cols);
        std::swap(m.row_step, m.col_step);
    }
    return m;
}
static bool inside(const Matrix& m, const char* which) {
    size_t elements = (m.rows - 1) * m.row_step + (m.cols - 1) * m.col_step + 1;
    return check_range(reinterpret_cast<uintptr_t>(m.data), elements * size_of(m.type), std::string("cublasLtMatmul: ") + which);
}

SOFTGPU_API int cublasLtMatmul(void*, Description* d, const float* alpha, const void* a, Layout* la, const void* b, Layout* lb,
                               const float* beta, const void* c, Layout* lc, void* o, Layout* lo, const Algorithm* algorithm,
                               void* workspace, size_t workspace_bytes, void* stream) {
    std::string wrong = wrong_with(*d, *la, *lb, *lc, *lo);
    if (wrong.empty() && algorithm && algorithm->data[0] != kMagic) wrong = "an algorithm that no heuristic returned";
    if (wrong.empty() && algorithm && workspace_bytes < algorithm->data[1])
        wrong = "a workspace of " + std::to_string(workspace_bytes) + " bytes where the algorithm needs " + std::to_string(algorithm->data[1]);
    if (wrong.empty() && d->pointer_mode) wrong = "alpha and beta on the device, which softgpu does not take";
    if (!wrong.empty()) {
        complain("cublasLtMatmul: " + wrong);
        return INVALID_VALUE;
    }
    Gemm g;
    g.alpha = *alpha;
    g.beta = *beta;
    g.epilogue = d->epilogue;
    g.a = matrix(*la, a, d->transpose_a);
    g.b = matrix(*lb, b, d->transpose_b);
    g.c = matrix(*lc, c, 0);
    g.d = matrix(*lo, o, 0);
    g.bias = d->bias;
    g.bias_type = d->bias_type < 0 ? lo->type : d->bias_type;
    g.aux = Matrix{d->aux, d->aux_type < 0 ? lo->type : d->aux_type, g.d.rows, g.d.cols, 1, static_cast<size_t>(d->aux_ld)};
    int batch = lo->batch;
    int64_t strides[4] = {la->stride, lb->stride, lc->stride, lo->stride};
    size_t used = algorithm ? static_cast<size_t>(algorithm->data[1]) : 0;
    CUresult result = enqueue(resolve(stream), "cublasLtMatmul", [=]() -> CUresult {
        // A workspace that overlaps live data, or that two streams share, must show.
        if (used && !check_range(reinterpret_cast<uintptr_t>(workspace), used, "cublasLtMatmul: the workspace")) return CUDA_ERROR_ILLEGAL_ADDRESS;
        if (used) memset(workspace, 0xFF, used);
        for (int i = 0; i < batch; i++) {
            Gemm one = g;
            Matrix* parts[4] = {&one.a, &one.b, &one.c, &one.d};
            for (int k = 0; k < 4; k++)
                if (parts[k]->data) parts[k]->data = static_cast<char*>(parts[k]->data) + i * strides[k] * static_cast<int64_t>(size_of(parts[k]->type));
            if (!inside(one.a, "A") || !inside(one.b, "B") || !inside(one.d, "D")) return CUDA_ERROR_ILLEGAL_ADDRESS;
            if (one.beta != 0 && !inside(one.c, "C")) return CUDA_ERROR_ILLEGAL_ADDRESS;
            if (!check_epilogue(one)) return CUDA_ERROR_ILLEGAL_ADDRESS;
            multiply(one);
        }
        return CUDA_SUCCESS;
    });
    return result ? 14 /* CUBLAS_STATUS_INTERNAL_ERROR */ : SUCCESS;
}
SOFTGPU_API const char* cublasLtGetStatusString(int status) {
    return status == SUCCESS ? "CUBLAS_STATUS_SUCCESS" : status == INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE" : "CUBLAS_STATUS_NOT_SUPPORTED";
}
