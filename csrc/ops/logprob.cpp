#include "sftrl/ops/logprob.h"

#include <cmath>
#include <limits>

#include "gemm.h"
#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

// Columns of the vocabulary that are walked over at a time, rows whose logits one thread holds for them (so
// 240 KiB of float32, in the L2 cache), and rows over which one product for the gradient of the weight runs.
constexpr std::int64_t kSegment = 20 * kPanel, kBlock = 64, kSpan = 2048,
                       kRound = std::max(8, kTileRows<bf16>);  // so that few tiles have fewer rows

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Where everything lies in the scratch memory.
template <class T>
struct Buffers {
    std::int64_t bytes = 0;
    std::uintptr_t base;
    std::int64_t padded_width, span, columns_ld;
    float* running;      // [4][rows]: largest logit, sum e, sum of e * logit, target's logit
    float* tiles;        // [slots][kBlock][kSegment]: logits, then their gradients
    T* weight_panels;    // a segment as columns, over the width
    T* weight_columns;   // a segment's width as columns, over the vocabulary
    T* halves;           // [slots][kBlock][kSegment]: gradients of logits in T
    T* grad_panels;      // gradients of logits: a segment as columns, over a span of rows
    T* hidden_columns;   // [width][columns_ld]: a span of rows, transposed
    float* grad_hidden;  // [rows][padded_width]
    float* grad_weight;  // [panels][width][48]: of a segment, transposed

    Buffers(const LogprobInputs& a, bool want_hidden, bool want_weight)
        : base(reinterpret_cast<std::uintptr_t>(a.scratch)) {
        const std::int64_t segment = std::min(kSegment, ceil_div(a.vocab, kPanel) * kPanel);
        const std::int64_t tile = a.slots * kBlock * kSegment;
        padded_width = ceil_div(a.width, kPanel) * kPanel;
        span = std::min(kSpan, ceil_div(a.rows, kBlock) * kBlock);
        columns_ld = span + 64 / static_cast<std::int64_t>(sizeof(T));  // rows must not share a cache set
        running = take<float>(want_hidden || want_weight ? 0 : 4 * a.rows);
        tiles = take<float>(tile);
        weight_panels = take<T>(segment / kPanel * panel_size<T>(a.width));
        weight_columns = take<T>(want_hidden ? padded_width / kPanel * panel_size<T>(segment) : 0);
        halves = take<T>(want_hidden || want_weight ? tile : 0);
        grad_panels = take<T>(want_weight ? segment * span : 0);
        hidden_columns = take<T>(want_weight ? a.width * columns_ld : 0);
        grad_hidden = take<float>(want_hidden ? a.rows * padded_width : 0);
        grad_weight = take<float>(want_weight ? segment * a.width : 0);
    }

    template <class U>
    U* take(std::int64_t count) {
        U* const at = reinterpret_cast<U*>(base + static_cast<std::uintptr_t>(bytes));
        bytes += ceil_div(count * static_cast<std::int64_t>(sizeof(U)), 64) * 64;
        return at;
    }
};

template <class T>
const T* row_of(const void* base, std::int64_t row, std::int64_t width) {
    return static_cast<const T*>(base) + row * width;
}

// body(slot, first row, rows) for blocks of the rows in [begin, end); no two that run at once share a slot.
template <class Body>
void for_row_blocks(const LogprobInputs& a, std::int64_t begin, std::int64_t end, Body&& body) {
    const std::int64_t share = ceil_div(end - begin, 4 * a.slots);
    const std::int64_t height = std::clamp<std::int64_t>(ceil_div(share, kRound) * kRound, kRound, kBlock);
    parallel_slots(ceil_div(end - begin, height), a.slots, [&](int slot, std::int64_t block) {
        const std::int64_t row = begin + block * height;
        body(slot, row, std::min(height, end - row));
    });
}

template <class T>
void pack_segment(const LogprobInputs& a, const Buffers<T>& b, std::int64_t start, std::int64_t columns,
                  bool transposed) {
    const std::int64_t panels = ceil_div(columns, kPanel), across = transposed ? b.padded_width / kPanel : 0;
    const T* const from = row_of<T>(a.weight, start, a.width);
    parallel_for(panels + across, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t p = i < panels ? i : i - panels;
            if (i < panels) {
                pack_rows(from + p * kPanel * a.width, a.width,
                          std::min<std::int64_t>(kPanel, columns - p * kPanel), a.width,
                          b.weight_panels + p * panel_size<T>(a.width));
            } else {
                pack_columns(from + p * kPanel, a.width, std::min<std::int64_t>(kPanel, a.width - p * kPanel),
                             columns, b.weight_columns + p * panel_size<T>(columns));
            }
        }
    });
}

// The block's products with the segment, unscaled; columns up to the end of the last panel.
template <class T>
float* logits(const LogprobInputs& a, const Buffers<T>& b, int slot, std::int64_t row, std::int64_t rows,
              std::int64_t columns) {
    float* const z = b.tiles + slot * kBlock * kSegment;
    const TilesScope scope;
    for (std::int64_t p = 0; p * kPanel < columns; ++p) {
        const T* const panel = b.weight_panels + p * panel_size<T>(a.width);
        tiles(row_of<T>(a.hidden, row, a.width), a.width, panel, a.width, z + p * kPanel, kSegment, false,
              rows, next_panel(panel, a.width));
    }
    return z;
}

struct Sums {
    float top, total, weighted;
};

// Largest of z * scale over a row, and the sums of e = exp(z * scale - top) and of e * (z * scale - top).
SFTRL_INLINE Sums row_sums(const float* z, int columns, float scale) {
    const int whole = columns / kLanes * kLanes, rest = columns - whole;
    f32x16 high = splat(z[0]);
    for (int j = 0; j < whole; j += kLanes) high = max(load(z + j), high);
    if (rest) high = max(load_first(z + whole, rest, z[0]), high);
    const float top = reduce_max(high) * scale;
    f32x16 total = splat(0.0f), weighted = splat(0.0f);
    for (int j = 0; j < whole; j += kLanes) {
        const f32x16 x = load(z + j) * scale - top, e = exp(x);
        total += e;
        weighted += e * x;
    }
    if (rest) {
        alignas(64) float tail[kLanes];
        const f32x16 x = load_first(z + whole, rest) * scale - top;
        store(exp(x), tail);
        const f32x16 e = load_first(tail, rest);
        store(x, tail);
        total += e;
        weighted += e * load_first(tail, rest);
    }
    return {top, reduce_add(total), reduce_add(weighted)};
}

// Joins a segment's sums to those of the segments before it.
SFTRL_INLINE void join(const Sums& s, float* top, float* total, float* weighted) {
    const float high = s.top > *top ? s.top : *top;
    const float before = *total > 0 ? *top - high : 0.0f, now = s.top - high;
    *weighted =
        (*weighted + before * *total) * std::exp(before) + (s.weighted + now * s.total) * std::exp(now);
    *total = *total * std::exp(before) + s.total * std::exp(now);
    *top = high;
}

template <class T>
void forward(const LogprobForwardArgs& args) {
    const LogprobInputs& a = args.in;
    const Buffers<T> b(a, false, false);
    float *const top = b.running, *const total = top + a.rows, *const weighted = total + a.rows,
                 *const chosen = weighted + a.rows;
    for (std::int64_t r = 0; r < a.rows; ++r) {
        top[r] = -std::numeric_limits<float>::infinity();
        total[r] = weighted[r] = 0.0f;
    }
    for (std::int64_t start = 0; start < a.vocab; start += kSegment) {
        const std::int64_t columns = std::min(kSegment, a.vocab - start);
        pack_segment(a, b, start, columns, false);
        for_row_blocks(a, 0, a.rows, [&](int slot, std::int64_t row, std::int64_t rows) {
            const float* z = logits(a, b, slot, row, rows, columns);
            for (std::int64_t r = row; r < row + rows; ++r, z += kSegment) {
                join(row_sums(z, static_cast<int>(columns), a.scale), top + r, total + r, weighted + r);
                const std::int64_t target = a.targets[r] - start;
                if (target >= 0 && target < columns) chosen[r] = z[target] * a.scale;
            }
        });
    }
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const float log_total = std::log(total[r]), entropy = log_total - weighted[r] / total[r];
        args.lse[r] = top[r] + log_total;
        args.logp[r] = chosen[r] - args.lse[r];
        args.entropy[r] = entropy < 0 ? 0.0f : entropy;  // rounding may leave -1e-8
    }
}

// Logits of one row become the gradient with respect to the unscaled logits. With p the softmax,
// d logp / d z_j = [j = target] - p_j and d H / d z_j = -p_j (log p_j + H).
void row_gradient(const LogprobBackwardArgs& args, std::int64_t row, std::int64_t start, std::int64_t columns,
                  float* z) {
    const LogprobInputs& a = args.in;
    const float lse = args.lse[row], entropy = args.entropy[row];
    const float slope = args.grad_logp ? args.grad_logp[row] * -a.scale : 0.0f;
    const float bend = args.grad_entropy ? args.grad_entropy[row] * a.scale : 0.0f;
    // Columns up to the panel's end are computed and never used.
    if (bend == 0.0f) {
        for (std::int64_t j = 0; j < columns; j += kLanes)
            store(exp(load(z + j) * a.scale - lse) * slope, z + j);
    } else {
        for (std::int64_t j = 0; j < columns; j += kLanes) {
            const f32x16 logp = load(z + j) * a.scale - lse;
            store(exp(logp) * (slope - bend * (logp + entropy)), z + j);
        }
    }
    const std::int64_t target = a.targets[row] - start;
    if (target >= 0 && target < columns) z[target] -= slope;
}

SFTRL_INLINE const float* in_type(const float* z, float*, std::int64_t, std::int64_t) { return z; }
SFTRL_INLINE const bf16* in_type(const float* z, bf16* halves, std::int64_t rows, std::int64_t columns) {
    for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t j = 0; j < columns; j += kLanes) {
            store(load(z + r * kSegment + j), halves + r * kSegment + j);
        }
    }
    return halves;
}

// A block's gradients of logits and what they add to the gradient of hidden; they are kept for that of the
// weight.
template <class T>
void block_gradient(const LogprobBackwardArgs& args, const Buffers<T>& b, int slot, std::int64_t row,
                    std::int64_t rows, std::int64_t start, std::int64_t columns) {
    const LogprobInputs& a = args.in;
    float* const z = logits(a, b, slot, row, rows, columns);
    for (std::int64_t r = 0; r < rows; ++r) row_gradient(args, row + r, start, columns, z + r * kSegment);
    const T* const d = in_type(z, b.halves + slot * kBlock * kSegment, rows, columns);
    if (args.grad_weight) {
        for (std::int64_t p = 0; p * kPanel < columns; ++p) {
            // The block starts at an even row of the span, so pairs of rows are whole.
            pack_columns(d + p * kPanel, kSegment, kPanel, rows,
                         b.grad_panels + p * panel_size<T>(b.span) + row % b.span * kPanel);
        }
    }
    if (args.grad_hidden) {
        const TilesScope scope;
        for (std::int64_t p = 0; p * kPanel < a.width; ++p) {
            const T* const panel = b.weight_columns + p * panel_size<T>(columns);
            tiles(d, kSegment, panel, columns, b.grad_hidden + row * b.padded_width + p * kPanel,
                  b.padded_width, start > 0, rows, next_panel(panel, columns));
        }
    }
}

// hidden_columns = the rows [begin, end) of hidden, transposed.
template <class T>
void transpose_hidden(const LogprobInputs& a, const Buffers<T>& b, std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t block = 64 / sizeof(T);
    parallel_for(ceil_div(end - begin, block), 1, [&](std::int64_t first, std::int64_t last) {
        const std::int64_t stop = std::min(end - begin, last * block);
        for (std::int64_t i = 0; i < a.width; ++i) {
            T* const to = b.hidden_columns + i * b.columns_ld;
            const T* const from = row_of<T>(a.hidden, begin, a.width) + i;
            for (std::int64_t r = first * block; r < stop; ++r) to[r] = from[r * a.width];
        }
    });
}

// Gradient of the segment's weight from a span of rows: its transpose is hidden transposed times the
// gradients of logits. Written to the result with the last span.
template <class T>
void weight_gradient(const LogprobBackwardArgs& args, const Buffers<T>& b, std::int64_t begin,
                     std::int64_t end, std::int64_t start, std::int64_t columns) {
    const LogprobInputs& a = args.in;
    constexpr std::int64_t height = 24 * 8;  // of the width, a unit of work
    const std::int64_t panels = ceil_div(columns, kPanel), parts = ceil_div(a.width, height);
    parallel_for(panels * parts, 1, [&](std::int64_t first, std::int64_t last) {
        const TilesScope scope;
        for (std::int64_t u = first; u < last; ++u) {
            const std::int64_t p = u / parts, i0 = u % parts * height, i1 = std::min(a.width, i0 + height);
            float* const sums = b.grad_weight + p * kPanel * a.width;
            const T* const panel = b.grad_panels + p * panel_size<T>(b.span);
            tiles(b.hidden_columns + i0 * b.columns_ld, b.columns_ld, panel, end - begin, sums + i0 * kPanel,
                  kPanel, begin > 0, i1 - i0, same_panel(panel));
            if (end < a.rows) continue;
            T* const to = static_cast<T*>(args.grad_weight) + (start + p * kPanel) * a.width;
            for (std::int64_t j = 0; j < std::min<std::int64_t>(kPanel, columns - p * kPanel); ++j) {
                for (std::int64_t i = i0; i < i1; ++i) from_float(sums[i * kPanel + j], to + j * a.width + i);
            }
        }
    });
}

template <class T>
void backward(const LogprobBackwardArgs& args) {
    const LogprobInputs& a = args.in;
    const Buffers<T> b(a, args.grad_hidden, args.grad_weight);
    for (std::int64_t start = 0; start < a.vocab; start += kSegment) {
        const std::int64_t columns = std::min(kSegment, a.vocab - start);
        pack_segment(a, b, start, columns, args.grad_hidden != nullptr);
        for (std::int64_t begin = 0; begin < a.rows; begin += b.span) {
            const std::int64_t end = std::min(a.rows, begin + b.span);
            // One span: it stays transposed.
            if (args.grad_weight && (start == 0 || a.rows > b.span)) transpose_hidden(a, b, begin, end);
            for_row_blocks(a, begin, end, [&](int slot, std::int64_t row, std::int64_t rows) {
                block_gradient(args, b, slot, row, rows, start, columns);
            });
            if (args.grad_weight) weight_gradient(args, b, begin, end, start, columns);
        }
    }
    if (!args.grad_hidden) return;
    parallel_for(a.rows, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            T* const to = static_cast<T*>(args.grad_hidden) + r * a.width;
            for (std::int64_t i = 0; i < a.width; ++i)
                from_float(b.grad_hidden[r * b.padded_width + i], to + i);
        }
    });
}

}  // namespace

void logprob_forward(const LogprobForwardArgs& args) noexcept {
    args.in.dtype == DType::kFloat32 ? forward<float>(args) : forward<bf16>(args);
}

void logprob_backward(const LogprobBackwardArgs& args) noexcept {
    args.in.dtype == DType::kFloat32 ? backward<float>(args) : backward<bf16>(args);
}

void logprob_scratch(const LogprobScratchArgs& args) noexcept {
    const LogprobInputs& a = *args.in;
    *args.bytes = a.dtype == DType::kFloat32 ? Buffers<float>(a, args.grad_hidden, args.grad_weight).bytes
                                             : Buffers<bf16>(a, args.grad_hidden, args.grad_weight).bytes;
}

}  // namespace sftrl::SFTRL_LEVEL
