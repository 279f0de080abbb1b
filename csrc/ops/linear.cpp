#include "sftrl/ops/linear.h"

#include "gated.h"
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

// sums[r][0..48) = the `rows` rows of x from `r` on times one panel, tile number `tile` of `tiles` with it.
template <class T>
SFTRL_INLINE void panel_sums(const LinearArgs& a, std::int64_t panel, std::int64_t r, std::int64_t rows,
                             std::int64_t tile, std::int64_t of_tiles, float* sums) {
    const T* const packed = static_cast<const T*>(a.packed) + panel * panel_size<T>(a.k);
    const Ahead ahead = of_tiles > 1 ? next_panel(packed, a.k, tile, of_tiles) : same_panel(packed);
    tiles(static_cast<const T*>(a.x) + r * a.k, a.k, packed, a.k, sums, kPanel, false, rows, ahead);
}

// body(first row, rows, tile, tiles) for the tiles of rows in [begin, end).
template <class T, class Body>
SFTRL_INLINE void for_tiles(std::int64_t begin, std::int64_t end, Body&& body) {
    const std::int64_t count = ceil_div(end - begin, kTileRows<T>);
    for (std::int64_t tile = 0; tile < count; ++tile) {
        const std::int64_t row = begin + tile * kTileRows<T>;
        body(row, std::min<std::int64_t>(kTileRows<T>, end - row), tile, count);
    }
}

template <class T>
const T* bias_of(const LinearArgs& a, std::int64_t column) {
    return a.bias ? static_cast<const T*>(a.bias) + column : nullptr;
}

// Rows [begin, end) of one panel's columns.
template <class T, class Out>
void panel_rows(const LinearArgs& a, std::int64_t panel, std::int64_t begin, std::int64_t end) {
    alignas(64) float sums[kTileRows<T> * kPanel];
    const std::int64_t column = panel * kPanel;
    const int columns = static_cast<int>(std::min<std::int64_t>(kPanel, a.n - column));
    const T* const bias = bias_of<T>(a, column);
    for_tiles<T>(begin, end, [&](std::int64_t r, std::int64_t rows, std::int64_t tile, std::int64_t of) {
        panel_sums<T>(a, panel, r, rows, tile, of, sums);
        for (std::int64_t i = 0; i < rows; ++i) {
            finish_row(sums + i * kPanel, bias, static_cast<Out*>(a.out) + (r + i) * a.n + column, columns);
        }
    });
}

// Rows [begin, end) of a panel of gates and the panel of what they let through.
template <class T>
void gated_rows(const LinearArgs& a, std::int64_t panel, std::int64_t begin, std::int64_t end) {
    alignas(64) float gates[kTileRows<T> * kPanel], ups[kTileRows<T> * kPanel];
    const std::int64_t column = panel * kPanel, half = a.n / 2;
    const T *const gate_bias = bias_of<T>(a, column), *const up_bias = bias_of<T>(a, half + column);
    const auto finished = [](const float* sums, const T* bias, int j) {
        const f32x16 sum = load(sums + j);
        return rounded<T>(bias ? sum + load(bias + j) : sum);
    };
    for_tiles<T>(begin, end, [&](std::int64_t r, std::int64_t rows, std::int64_t tile, std::int64_t of) {
        panel_sums<T>(a, panel, r, rows, tile, of, gates);
        panel_sums<T>(a, panel + half / kPanel, r, rows, tile, of, ups);
        for (std::int64_t i = 0; i < rows; ++i) {
            T* const out = static_cast<T*>(a.out) + (r + i) * half + column;
            for (int j = 0; j < kPanel; j += kLanes) {
                store(gated<T>(finished(gates + i * kPanel, gate_bias, j),
                               finished(ups + i * kPanel, up_bias, j)),
                      out + j);
            }
        }
    });
}

// body(panel, first row, end) for all rows of each of the panels.
template <class T, class Body>
void for_panels(const LinearArgs& a, std::int64_t panels, Body&& body) {
    const std::int64_t wanted = kUnitsPerThread * max_threads();
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
                         body(u / blocks, row, std::min(a.rows, row + height));
                     }
                 });
}

template <class T, class Out>
void run(const LinearArgs& a) {
    for_panels<T>(a, ceil_div(a.n, kPanel), [&](std::int64_t panel, std::int64_t begin, std::int64_t end) {
        panel_rows<T, Out>(a, panel, begin, end);
    });
}

template <class T>
void run_gated(const LinearArgs& a) {
    for_panels<T>(a, a.n / 2 / kPanel, [&](std::int64_t panel, std::int64_t begin, std::int64_t end) {
        gated_rows<T>(a, panel, begin, end);
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

void linear_swiglu(const LinearArgs& args) noexcept {
    if (args.rows == 0) return;
    args.dtype == DType::kFloat32 ? run_gated<float>(args) : run_gated<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
