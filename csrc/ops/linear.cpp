#include "sftrl/ops/linear.h"

#include "gemm.h"
#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kRowBlock = 64;       // rows of a unit of work where there are too few panels
constexpr std::int64_t kUnitsPerThread = 8;  // at least, where rows can be cut: so threads get even parts

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <class T>
void pack(const PackLinearArgs& a) {
    const std::int64_t panels = ceil_div(a.n, kPanel);
    parallel_for(panels, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t p = begin; p < end; ++p) {
            const T* const from = static_cast<const T*>(a.weight) + p * kPanel * a.k;
            pack_rows(from, a.k, std::min<std::int64_t>(kPanel, a.n - p * kPanel), a.k,
                      static_cast<T*>(a.packed) + p * panel_size<T>(a.k));
        }
    });
}

template <class T, class Out>
SFTRL_INLINE void finish_row(const float* sums, const T* bias, Out* out, int columns) {
    int j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
        const f32x16 sum = load(sums + j);
        store(bias ? sum + load(bias + j) : sum, out + j);
    }
    if (j < columns) {
        const f32x16 sum = load(sums + j);
        store_first(bias ? sum + load_first(bias + j, columns - j) : sum, out + j, columns - j);
    }
}

// Rows [begin, end) of one panel's columns.
template <class T, class Out>
void panel_rows(const LinearArgs& a, std::int64_t panel, std::int64_t begin, std::int64_t end) {
    alignas(64) float sums[kTileRows<T> * kPanel];
    const std::int64_t column = panel * kPanel;
    const int columns = static_cast<int>(std::min<std::int64_t>(kPanel, a.n - column));
    const T* const packed = static_cast<const T*>(a.packed) + panel * panel_size<T>(a.k);
    const T* const bias = a.bias ? static_cast<const T*>(a.bias) + column : nullptr;
    const std::int64_t tiles_of_rows = ceil_div(end - begin, kTileRows<T>);
    for (std::int64_t r = begin; r < end; r += kTileRows<T>) {
        const Ahead ahead = tiles_of_rows > 1
                                ? next_panel(packed, a.k, (r - begin) / kTileRows<T>, tiles_of_rows)
                                : same_panel(packed);
        const std::int64_t rows = std::min<std::int64_t>(kTileRows<T>, end - r);
        tiles(static_cast<const T*>(a.x) + r * a.k, a.k, packed, a.k, sums, kPanel, false, rows, ahead);
        for (std::int64_t i = 0; i < rows; ++i) {
            finish_row(sums + i * kPanel, bias, static_cast<Out*>(a.out) + (r + i) * a.n + column, columns);
        }
    }
}

template <class T, class Out>
void run(const LinearArgs& a) {
    const std::int64_t panels = ceil_div(a.n, kPanel), wanted = kUnitsPerThread * max_threads();
    const std::int64_t blocks =
        std::clamp<std::int64_t>(ceil_div(wanted, panels), 1, ceil_div(a.rows, kRowBlock));
    const std::int64_t height = ceil_div(ceil_div(a.rows, blocks), kTileRows<T>) * kTileRows<T>;
    // Panels outside: the row blocks of one follow each other while it is in a cache. A part a thread:
    // processors see one stream each, and what a thread asked for ahead is its own.
    parallel_for(panels * blocks, ceil_div(panels * blocks, max_threads()),
                 [&](std::int64_t begin, std::int64_t end) {
                     const TilesScope scope;
                     for (std::int64_t u = begin; u < end; ++u) {
                         const std::int64_t row = u % blocks * height;
                         panel_rows<T, Out>(a, u / blocks, row, std::min(a.rows, row + height));
                     }
                 });
}

}  // namespace

void pack_linear(const PackLinearArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? pack<float>(args) : pack<bf16>(args);
}

void linear(const LinearArgs& args) noexcept {
    if (args.rows == 0) return;
    if (args.dtype == DType::kFloat32) return run<float, float>(args);
    args.out_dtype == DType::kFloat32 ? run<bf16, float>(args) : run<bf16, bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
