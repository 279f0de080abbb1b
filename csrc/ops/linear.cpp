#include "sftrl/ops/linear.h"

#include "gated.h"
#include "gemm.h"
#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kRowBlock = 64;       // rows of a unit of work where there are too few panels
constexpr std::int64_t kUnitsPerThread = 8;  // at least, where rows can be cut: so threads get even parts

// From so many rows on a unit takes several panels, and each tile of its rows meets them in turn. All rows do
// not stay in the second cache; the panels do, and the matrix registers of AMX no longer wait. On the vector
// units rows come fast enough.
constexpr std::int64_t kManyRows = 256, kTogetherBytes = 1 << 20;
#if defined(__AMX_BF16__)
template <class T>
constexpr std::int64_t kMostTogether = sizeof(T) == 2 ? 8 : 1;
#else
template <class T>
constexpr std::int64_t kMostTogether = 1;
#endif

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

// Panels [first, last) and rows [begin, end): a unit of work.
struct Unit {
    std::int64_t first, last, begin, end;
};

// A tile of a unit's rows, number `tile` of `tiles`; whether it meets one panel only.
struct Rows {
    std::int64_t first, count, tile, tiles;
    bool one_panel;
};

// sums[r][0..48) = those rows of x times one panel.
template <class T>
SFTRL_INLINE void panel_sums(const LinearArgs& a, std::int64_t panel, const Rows& rows, float* sums) {
    const T* const packed = static_cast<const T*>(a.packed) + panel * panel_size<T>(a.k);
    Ahead ahead{reinterpret_cast<const char*>(packed), 0};
    if (rows.one_panel && rows.tiles > 1) {
        ahead = next_panel(packed, a.k, rows.tile, rows.tiles);
    } else if (rows.tile == 0) {
        ahead = same_panel(packed);
    }
    tiles(static_cast<const T*>(a.x) + rows.first * a.k, a.k, packed, a.k, sums, kPanel, false, rows.count,
          ahead);
}

// body(rows, panel) for all of the unit: each tile of rows with its panels in turn.
template <class T, class Body>
SFTRL_INLINE void for_tiles(const Unit& unit, Body&& body) {
    const std::int64_t count = ceil_div(unit.end - unit.begin, kTileRows<T>);
    for (std::int64_t tile = 0; tile < count; ++tile) {
        const std::int64_t row = unit.begin + tile * kTileRows<T>;
        const Rows rows{row, std::min<std::int64_t>(kTileRows<T>, unit.end - row), tile, count,
                        unit.last - unit.first == 1};
        for (std::int64_t panel = unit.first; panel < unit.last; ++panel) body(rows, panel);
    }
}

template <class T>
const T* bias_of(const LinearArgs& a, std::int64_t column) {
    return a.bias ? static_cast<const T*>(a.bias) + column : nullptr;
}

// The columns of the unit's panels.
template <class T, class Out>
void panel_rows(const LinearArgs& a, const Unit& unit) {
    alignas(64) float sums[kTileRows<T> * kPanel];
    for_tiles<T>(unit, [&](const Rows& rows, std::int64_t panel) {
        const std::int64_t column = panel * kPanel;
        const int columns = static_cast<int>(std::min<std::int64_t>(kPanel, a.n - column));
        const T* const bias = bias_of<T>(a, column);
        panel_sums<T>(a, panel, rows, sums);
        for (std::int64_t i = 0; i < rows.count; ++i) {
            finish_row(sums + i * kPanel, bias, static_cast<Out*>(a.out) + (rows.first + i) * a.n + column,
                       columns);
        }
    });
}

// Of panels of gates and the panels of what they let through.
template <class T>
void gated_rows(const LinearArgs& a, const Unit& unit) {
    alignas(64) float gates[kTileRows<T> * kPanel], ups[kTileRows<T> * kPanel];
    const std::int64_t half = a.n / 2;
    const auto finished = [](const float* sums, const T* bias, int j) {
        const f32x16 sum = load(sums + j);
        return rounded<T>(bias ? sum + load(bias + j) : sum);
    };
    for_tiles<T>(unit, [&](const Rows& rows, std::int64_t panel) {
        const std::int64_t column = panel * kPanel;
        const T *const gate_bias = bias_of<T>(a, column), *const up_bias = bias_of<T>(a, half + column);
        panel_sums<T>(a, panel, rows, gates);
        panel_sums<T>(a, panel + half / kPanel, rows, ups);
        for (std::int64_t i = 0; i < rows.count; ++i) {
            T* const out = static_cast<T*>(a.out) + (rows.first + i) * half + column;
            for (int j = 0; j < kPanel; j += kLanes) {
                store(gated<T>(finished(gates + i * kPanel, gate_bias, j),
                               finished(ups + i * kPanel, up_bias, j)),
                      out + j);
            }
        }
    });
}

// body(unit) for all rows of each of the panels, of which a step of a unit reads `at_once`.
template <class T, class Body>
void for_units(const LinearArgs& a, std::int64_t panels, std::int64_t at_once, Body&& body) {
    const std::int64_t wanted = kUnitsPerThread * max_threads(), row_blocks = ceil_div(a.rows, kRowBlock);
    const std::int64_t bytes = at_once * panel_size<T>(a.k) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t together =
        a.rows < kManyRows ? 1 : std::clamp<std::int64_t>(kTogetherBytes / bytes, 1, kMostTogether<T>);
    const std::int64_t groups =
        std::min(panels, std::max(ceil_div(panels, together), ceil_div(wanted, row_blocks)));
    const std::int64_t blocks = std::clamp<std::int64_t>(ceil_div(wanted, groups), 1, row_blocks);
    const std::int64_t height = ceil_div(ceil_div(a.rows, blocks), kTileRows<T>) * kTileRows<T>;
    // Panels outside: the row blocks of one follow each other while it is in a cache. A part a thread:
    // processors see one stream each, and what a thread asked for ahead is its own.
    parallel_for(groups * blocks, ceil_div(groups * blocks, max_threads()),
                 [&](std::int64_t begin, std::int64_t end) {
                     const TilesScope scope;
                     for (std::int64_t u = begin; u < end; ++u) {
                         const std::int64_t group = u / blocks, row = u % blocks * height;
                         body(Unit{group * panels / groups, (group + 1) * panels / groups, row,
                                   std::min(a.rows, row + height)});
                     }
                 });
}

template <class T, class Out>
void run(const LinearArgs& a) {
    for_units<T>(a, ceil_div(a.n, kPanel), 1, [&](const Unit& unit) { panel_rows<T, Out>(a, unit); });
}

template <class T>
void run_gated(const LinearArgs& a) {
    for_units<T>(a, a.n / 2 / kPanel, 2, [&](const Unit& unit) { gated_rows<T>(a, unit); });
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
