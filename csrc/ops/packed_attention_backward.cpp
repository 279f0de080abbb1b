#include "packed_attention_rows.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr std::int64_t kUnitTokens = 256;

// Segments in the order of their parents, cut into units: neighbours with one parent (or none) until they
// hold as many tokens as the parent and at least kUnitTokens. A unit and a key/value head are one task, which
// adds its children's gradients up in a slot of its own; a parent's slots are added in the order of the
// units. So every sum has one order, whatever the number of threads, and the slots hold at most 2 T rows.
struct Units {
    std::int64_t* order;     // [S]
    std::int64_t* begin;     // [units + 1]: into order
    std::int64_t* slot;      // [units]: first row of the parent's partial sums
    std::int64_t* own_slot;  // [S]: the same for what a parent adds itself; -1 for a segment without children
    std::int64_t count = 0, rows = 0;

    Units(const PackedAttentionBackwardArgs& a, float*& scratch) {
        const std::int64_t n = a.segments;
        order = carve<std::int64_t>(scratch, n * 8);
        begin = carve<std::int64_t>(scratch, (n + 1) * 8);
        slot = carve<std::int64_t>(scratch, n * 8);
        own_slot = carve<std::int64_t>(scratch, n * 8);
        sort(a);
        begin[0] = 0;
        std::int64_t tokens = 0;
        for (std::int64_t i = 0; i < n; ++i) {
            const std::int64_t parent = a.parent[order[i]], shared = parent < 0 ? 0 : length(a, parent);
            if (i == begin[count]) {
                tokens = 0;
                slot[count] = rows;
                rows += shared;
            }
            tokens += length(a, order[i]);
            const bool full = tokens >= (shared > kUnitTokens ? shared : kUnitTokens);
            if (full || i + 1 == n || a.parent[order[i + 1]] != parent) begin[++count] = i + 1;
        }
    }
    static std::int64_t length(const PackedAttentionBackwardArgs& a, std::int64_t s) {
        return a.offsets[s + 1] - a.offsets[s];
    }

  private:
    // By parent, stable: a count of the children turns into the place of the next one. Uses begin and slot.
    void sort(const PackedAttentionBackwardArgs& a) {
        std::int64_t* const place = begin;  // [S + 1], of parent p at p + 1
        for (std::int64_t s = 0; s <= a.segments; ++s) place[s] = 0;
        for (std::int64_t s = 0; s < a.segments; ++s) ++place[a.parent[s] + 1];
        for (std::int64_t s = 0; s < a.segments; ++s) {
            own_slot[s] = place[s + 1] ? rows : -1;
            if (place[s + 1]) rows += length(a, s);
        }
        for (std::int64_t p = 0, total = 0; p <= a.segments; ++p) {
            const std::int64_t children = place[p];
            place[p] = total;
            total += children;
        }
        for (std::int64_t s = 0; s < a.segments; ++s) order[place[a.parent[s] + 1]++] = s;
    }
};

template <class T, class U>
class Backward {
    using E = typename U::Element;

  public:
    explicit Backward(const PackedAttentionBackwardArgs& args)
        : a_(args),
          t_(a_),
          units_(a_, t_.scratch),
          column_vectors_((t_.width + kLanes - 1) / kLanes),
          lanes_(column_vectors_ * kLanes) {
        sums_k_ = carve<float>(t_.scratch, units_.rows * a_.kv_heads * lanes_ * 4);
        sums_v_ = carve<float>(t_.scratch, units_.rows * a_.kv_heads * lanes_ * 4);
        for (std::int64_t s = 0; s < a_.segments; ++s) {
            if (t_.length(s) > longest_) longest_ = t_.length(s);
        }
    }

    void run() const {
        t_.fill_columns(t_.k);
        parallel_for(units_.count * a_.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
            const std::int64_t own = std::int64_t{longest_} * lanes_;
            Desk desk(2 * own + (2 * t_.words + 3 * kMostKeys + t_.width + 2 * lanes_ + 4) * kBlockRows);
            Tile tile{};
            tile.own_k = desk.take(own);
            tile.own_v = desk.take(own);
            tile.scores = desk.take(kMostKeys * kBlockRows);
            tile.slopes = desk.take(kMostKeys * kBlockRows);
            tile.slope_words = reinterpret_cast<word*>(desk.take(kMostKeys * kBlockRows));
            tile.query_words = reinterpret_cast<word*>(desk.take(t_.words * kBlockRows));
            tile.grad_words = reinterpret_cast<word*>(desk.take(t_.words * kBlockRows));
            tile.query_rows = reinterpret_cast<word*>(desk.take(lanes_ * kBlockRows));
            tile.grad_rows = reinterpret_cast<word*>(desk.take(lanes_ * kBlockRows));
            tile.grad_q = desk.take(t_.width * kBlockRows);
            tile.lse = desk.take(kBlockRows);
            tile.delta = desk.take(kBlockRows);
            tile.ones = desk.take(kBlockRows);
            tile.tokens = reinterpret_cast<std::int32_t*>(desk.take(kBlockRows));
            for (int i = 0; i < kBlockRows; ++i) tile.ones[i] = 1.0f;
            for (std::int64_t i = begin; i < end; ++i) {
                unit(i % units_.count, static_cast<int>(i / units_.count), tile);
            }
        });
        add_slots();
    }

  private:
    struct Sums {
        float *k, *v;  // [keys][lanes_]
    };
    struct Tile {
        float *own_k, *own_v;    // [longest][lanes_]
        float *scores, *slopes;  // [keys][lanes]: scores, then weights; gradients of weights, then scores
        word* slope_words;       // [keys' words][lanes]
        word *query_words, *grad_words;  // [words][lanes]
        word *query_rows, *grad_rows;    // [lanes' words][lanes_]
        float* grad_q;                   // [width][lanes]
        float *lse, *delta, *ones;
        std::int32_t* tokens;
        int vectors;
        Products<U> products;
    };

    Sums slot(std::int64_t row, int head) const {
        const std::int64_t at = (head * units_.rows + row) * lanes_;
        return {sums_k_ + at, sums_v_ + at};
    }
    void clear(Sums sums, int keys) const {
        const std::size_t bytes =
            static_cast<std::size_t>(keys) * static_cast<std::size_t>(lanes_) * sizeof(float);
        std::memset(sums.k, 0, bytes);
        std::memset(sums.v, 0, bytes);
    }

    void unit(std::int64_t u, int head, Tile& tile) const {
        const std::int64_t parent = a_.parent[units_.order[units_.begin[u]]];
        Sums shared{};
        if (parent >= 0) clear(shared = slot(units_.slot[u], head), t_.length(parent));
        for (std::int64_t i = units_.begin[u]; i < units_.begin[u + 1]; ++i) {
            const std::int64_t s = units_.order[i];
            const bool has_children = units_.own_slot[s] >= 0;
            const Sums own = has_children ? slot(units_.own_slot[s], head) : Sums{tile.own_k, tile.own_v};
            clear(own, t_.length(s));
            for (int begin = 0; begin < t_.length(s) * t_.ratio; begin += kBlockRows) {
                block(s, head, begin, shared, own, tile);
            }
            if (!has_children) write_keys(s, head, own);
        }
    }

    void block(std::int64_t s, int head, int begin, Sums shared, Sums own, Tile& tile) const {
        const int left = t_.length(s) * t_.ratio - begin, rows = left < kBlockRows ? left : kBlockRows;
        tile.vectors = (rows + kLanes - 1) / kLanes;
        load_rows(s, head, begin, rows, tile);
        const std::size_t floats =
            static_cast<std::size_t>(t_.width) * static_cast<std::size_t>(tile.vectors);
        std::memset(tile.grad_q, 0, floats * kLanes * sizeof(float));
        const int first = begin / t_.ratio, last = (begin + rows - 1) / t_.ratio;
        if (const std::int64_t parent = a_.parent[s]; parent >= 0) {
            for (int from = 0, to, end = t_.length(parent); from < end; from = to) {
                to = next_cut(from, end);
                keys<false>(parent, head, from, to, shared, tile);
            }
        }
        for (int from = 0, to; from <= last; from = to) {
            to = next_cut(from, last + 1);
            to - 1 > first ? keys<true>(s, head, from, to, own, tile)
                           : keys<false>(s, head, from, to, own, tile);
        }
        const auto row = [&](int i) { return static_cast<T*>(a_.grad_q) + t_.query_row(s, head, begin + i); };
        unpack<T>(tile.grad_q, tile.vectors, t_.width, tile.ones, rows, row);
    }

    void load_rows(std::int64_t s, int head, int begin, int rows, Tile& tile) const {
        const auto query = [&](int i) { return t_.q + t_.query_row(s, head, begin + i); };
        const auto grad = [&](int i) { return t_.grad_out + t_.query_row(s, head, begin + i); };
        pack_words<U>(query, rows, tile.vectors, t_.width, tile.query_words);
        pack_words<U>(grad, rows, tile.vectors, t_.width, tile.grad_words);
        pack_rows<U>(query, rows, tile.vectors * kLanes, t_.width, lanes_, tile.query_rows);
        pack_rows<U>(grad, rows, tile.vectors * kLanes, t_.width, lanes_, tile.grad_rows);
        token_lanes(begin, rows, t_.ratio, tile.tokens);
        for (int i = 0; i < kBlockRows; ++i) {
            tile.lse[i] = __builtin_inff();  // a lane beyond the rows has no weight
            tile.delta[i] = 0.0f;
        }
        for (int i = 0; i < rows; ++i) {
            const std::int64_t at = t_.query_row(s, head, begin + i);
            tile.lse[i] = a_.lse[at / a_.width];
            tile.delta[i] =
                dot_row(static_cast<const T*>(a_.out) + at, static_cast<const T*>(a_.grad_out) + at);
        }
    }

    float dot_row(const T* a, const T* b) const {
        f32x16 sum = splat(0.0f);
        const int whole = t_.width / kLanes * kLanes, rest = t_.width - whole;
        for (int c = 0; c < whole; c += kLanes) sum += load(a + c) * load(b + c);
        if (rest) sum += load_first(a + whole, rest) * load_first(b + whole, rest);
        return reduce_add(sum);
    }

    template <bool Causal>
    void keys(std::int64_t s, int head, int from, int to, Sums sums, Tile& tile) const {
        const int count = to - from, lanes = tile.vectors * kLanes;
        const int key_words = (count + U::kPer - 1) / U::kPer, row_words = lanes / U::kPer;
        const std::int64_t at = t_.key_row(s, head, from), stride = t_.key_stride / U::kPer;
        tile.products.run(t_.k + at, stride, count, tile.query_words, tile.vectors, t_.words, tile.scores,
                          false);
        tile.products.run(t_.v + at, stride, count, tile.grad_words, tile.vectors, t_.words, tile.slopes,
                          false);
        slopes<Causal>(from, count, tile);
        float* const sum_k = sums.k + std::int64_t{from} * lanes_;
        float* const sum_v = sums.v + std::int64_t{from} * lanes_;
        tile.products.run(tile.scores, lanes, count, tile.grad_rows, column_vectors_, row_words, sum_v, true);
        tile.products.run(tile.slopes, lanes, count, tile.query_rows, column_vectors_, row_words, sum_k,
                          true);
        tile.products.run(t_.columns_of(s, head, from / U::kPer), t_.column_stride(s), t_.width,
                          tile.slope_words, tile.vectors, key_words, tile.grad_q, true);
    }

    // In place: scores become weights p, and the gradients of the weights those of the scores, p (dp -
    // delta).
    template <bool Causal>
    void slopes(int from, int count, Tile& tile) const {
        const float scale = a_.scale * kLog2E;
        const int lanes = tile.vectors * kLanes;
        for (int j = 0; j < count; j += U::kPer) {
            const bool two = U::kPer == 2 && j + 1 < count;
            float* const low_score = tile.scores + j * lanes;
            float* const low_slope = tile.slopes + j * lanes;
            for (int i = 0; i < lanes; i += kLanes) {
                const auto weight = [&](int row) {
                    const f32x16 x = load(low_score + row * lanes + i) * scale - load(tile.lse + i);
                    // No weight is over 1; but a huge score may round otherwise than in the forward pass.
                    const f32x16 behind = select(x > 0.0f, splat(0.0f), x);
                    return exp2(Causal ? masked(behind, tile.tokens + i, from + j + row) : behind);
                };
                const auto slope = [&](int row, f32x16 p) {
                    return p * (load(low_slope + row * lanes + i) - load(tile.delta + i)) * a_.scale;
                };
                const f32x16 low = weight(0), high = two ? weight(1) : splat(0.0f);
                const f32x16 low_ds = slope(0, low), high_ds = two ? slope(1, high) : splat(0.0f);
                E* const score_row = reinterpret_cast<E*>(low_score) + i;
                E* const slope_row = reinterpret_cast<E*>(low_slope) + i;
                const int next = lanes * U::kPer;  // elements from a row to the next
                U::narrow(low, high, score_row, two ? score_row + next : nullptr);
                const u32x16 both = U::narrow(low_ds, high_ds, slope_row, two ? slope_row + next : nullptr);
                store_words(both, tile.slope_words + j / U::kPer * lanes + i);
            }
        }
    }

    void write_keys(std::int64_t s, int head, Sums sums) const {
        for (int key = 0; key < t_.length(s); ++key) {
            const std::int64_t at = t_.key_row(s, head, key);
            write_row(sums.k + std::int64_t{key} * lanes_, static_cast<T*>(a_.grad_k) + at);
            write_row(sums.v + std::int64_t{key} * lanes_, static_cast<T*>(a_.grad_v) + at);
        }
    }
    void write_row(const float* from, T* to) const {
        const int whole = t_.width / kLanes * kLanes, rest = t_.width - whole;
        for (int c = 0; c < whole; c += kLanes) store(load(from + c), to + c);
        if (rest) store_first(load(from + whole), to + whole, rest);
    }

    // A parent's gradients: its own part, then its units' in order.
    void add_slots() const {
        parallel_for(units_.count * a_.kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t u = i % units_.count, parent = parent_of(u);
                if (parent < 0 || (u > 0 && parent_of(u - 1) == parent)) continue;
                const int head = static_cast<int>(i / units_.count);
                const Sums sums = slot(units_.own_slot[parent], head);
                const std::int64_t floats = std::int64_t{t_.length(parent)} * lanes_;
                for (std::int64_t next = u; next < units_.count && parent_of(next) == parent; ++next) {
                    const Sums more = slot(units_.slot[next], head);
                    for (std::int64_t c = 0; c < floats; c += kLanes) {
                        store(load(sums.k + c) + load(more.k + c), sums.k + c);
                        store(load(sums.v + c) + load(more.v + c), sums.v + c);
                    }
                }
                write_keys(parent, head, sums);
            }
        });
    }
    std::int64_t parent_of(std::int64_t u) const { return a_.parent[units_.order[units_.begin[u]]]; }

    const PackedAttentionBackwardArgs& a_;
    Tensors<T, U> t_;
    Units units_;
    int column_vectors_, lanes_, longest_ = 0;  // a row of sums is the width rounded up to vectors
    float *sums_k_, *sums_v_;
};

}  // namespace

void packed_attention_backward(const PackedAttentionBackwardArgs& args) noexcept {
#if defined(__AVX512BF16__)
    using Half = Pairs;
#else
    using Half = Singles;
#endif
    args.dtype == DType::kFloat32 ? Backward<float, Singles>(args).run() : Backward<bf16, Half>(args).run();
}

}  // namespace sftrl::SFTRL_LEVEL
