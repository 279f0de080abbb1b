#include "sftrl/ops/cached_attention.h"

#include <cmath>
#include <vector>

#include "cached_attention_block.h"
#include "cached_attention_plan.h"
#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

using namespace cached;

constexpr int kSecondCache = 2;  // of __builtin_prefetch

struct alignas(64) Line {
    float lanes[kLanes];
};

// Memory of one thread, kept from call to call and grown to the widest head seen.
struct Memory {
    std::vector<Line> lines;
    std::vector<Span> spans;
    float* floats(std::size_t count) {
        if (lines.size() * kLanes < count) lines.resize(count / kLanes + 1);
        return lines[0].lanes;
    }
};
thread_local Memory desk_memory, slot_memory;

template <class T>
class Attention {
    using P = Arithmetic<T>;
    using QueryUnit = typename P::Unit;

  public:
    explicit Attention(const Plan& plan)
        : p_(plan),
          a_(plan.a),
          width_(static_cast<int>(a_.width)),
          units_((width_ + P::kElements - 1) / P::kElements),
          factor_(a_.scale * 1.44269504f) {}  // log2(e): weights are powers of 2

    // All spans of a task, one after another.
    void whole(std::int64_t task) const {
        Desk desk = sit();
        const Unit& unit = p_.unit(task);
        read_queries(task, 0, static_cast<int>(unit.end - unit.begin), desk);
        begin(task, desk.rows);
        std::vector<Span>& spans = desk_memory.spans;
        spans.clear();
        p_.each_span(unit, [&](const Span& span) { spans.push_back(span); });
        for (std::size_t i = 0; i < spans.size(); ++i) {
            if (i + 1 < spans.size()) fetch(task, spans[i + 1], desk);
            const int first = spans[i].query_begin * p_.heads_of(task);
            attend(task, spans[i], desk.queries + first * units_, desk, desk.part);
            merge(desk.rows.from(first), desk.part,
                  (spans[i].query_end - spans[i].query_begin) * p_.heads_of(task));
        }
        write(task, desk.rows);
    }

    // One span of a task, left at its slot.
    void single(const Slot& slot, float* slots) const {
        Desk desk = sit();
        read_queries(slot.task, slot.span.query_begin, slot.span.query_end, desk);
        attend(slot.task, slot.span, desk.queries, desk, at(slot, slots));
    }

    // What `whole` would have made of the spans at a task's slots.
    void join(std::int64_t task, float* slots) const {
        Desk desk = sit();
        begin(task, desk.rows);
        const auto at_task = static_cast<std::size_t>(task);
        for (std::size_t i = p_.firsts[at_task]; i < p_.firsts[at_task + 1]; ++i) {
            const Span& span = p_.slots[i].span;
            merge(desk.rows.from(span.query_begin * p_.heads_of(task)), at(p_.slots[i], slots),
                  (span.query_end - span.query_begin) * p_.heads_of(task));
        }
        write(task, desk.rows);
    }

  private:
    // A thread's memory, sized for kRows rows, and the block of tokens in hand.
    struct Desk {
        float *scores, *packed, *keep;
        QueryUnit* queries;  // [kRows, units_]
        T* zeros;            // [width_], in the place of tokens that are not there
        Rows rows, part;
        const T* keys[kBlockTokens];
        const T* values[kBlockTokens];
    };

    Desk sit() const {
        const std::size_t scores = kRows * kBlockTokens,
                          units = static_cast<std::size_t>(round_up(units_, kLanes));
        const std::size_t packed = units * kChunkTokens, queries = kRows * units, zeros = p_.stride;
        const std::size_t rows = Rows::floats(kRows, p_.stride);
        float* free = desk_memory.floats(scores + packed + queries + zeros + kRows + 2 * rows);
        const auto take = [&free](std::size_t floats) { return (free += floats) - floats; };
        Desk desk;
        desk.scores = take(scores);
        desk.packed = take(packed);
        desk.queries = reinterpret_cast<QueryUnit*>(take(queries));
        desk.zeros = reinterpret_cast<T*>(take(zeros));
        desk.keep = take(kRows);
        desk.rows = Rows::at(take(rows), kRows, p_.stride);
        desk.part = Rows::at(take(rows), kRows, p_.stride);
        std::fill(desk.zeros, desk.zeros + width_, T{});
        return desk;
    }

    Rows at(const Slot& slot, float* slots) const {
        const int rows = p_.heads_of(slot.task) * (slot.span.query_end - slot.span.query_begin);
        return Rows::at(slots + slot.at, round_up(rows, kLanes), p_.stride);
    }

    std::int64_t row_offset(std::int64_t task, std::int64_t query, int head) const {
        const std::int64_t first =
            static_cast<std::int64_t>(p_.kv_head(task)) * p_.ratio + p_.first_head(task);
        return ((p_.unit(task).begin + query) * a_.query_heads + first + head) * a_.width;
    }

    void read_queries(std::int64_t task, int begin, int end, const Desk& desk) const {
        QueryUnit* to = desk.queries;
        for (int query = begin; query < end; ++query) {
            for (int head = 0; head < p_.heads_of(task); ++head, to += units_) {
                const T* const from = static_cast<const T*>(a_.q) + row_offset(task, query, head);
                for (int u = 0; u < units_; u += kLanes) {
                    const int count = std::min(kLanes, units_ - u);
                    const f32x16 units = P::units(from + u * P::kElements, count, width_ - u * P::kElements);
                    std::memcpy(to + u, &units, count * sizeof *to);
                }
            }
        }
    }

    void begin(std::int64_t task, const Rows& rows) const {
        const auto count = (p_.unit(task).end - p_.unit(task).begin) * p_.heads_of(task);
        std::fill(rows.highest, rows.highest + count, -__builtin_inff());
        std::fill(rows.sum, rows.sum + count, 0.0f);
        std::fill(rows.values, rows.values + count * rows.stride, 0.0f);
    }

    void write(std::int64_t task, const Rows& rows) const {
        const int heads = p_.heads_of(task),
                  count = static_cast<int>(p_.unit(task).end - p_.unit(task).begin) * heads;
        for (int r = 0; r < count; ++r) {
            const std::int64_t at = row_offset(task, r / heads, r % heads);
            T* const to = static_cast<T*>(a_.out) + at;
            if (a_.lse) a_.lse[at / a_.width] = rows.highest[r] + std::log2(rows.sum[r]);
            const float scale = 1.0f / rows.sum[r];
            for (int i = 0; i < width_; i += 2 * kLanes) {
                f32x16 halves[2] = {load(rows.values + r * rows.stride + i),
                                    load(rows.values + r * rows.stride + i + kLanes)};
                P::in_order(halves[0], halves[1]);
                for (int half = 0, j = i; half < 2 && j < width_; ++half, j += kLanes) {
                    const f32x16 value = halves[half] * scale;
                    width_ - j >= kLanes ? store(value, to + j) : store_first(value, to + j, width_ - j);
                }
            }
        }
    }

    // Where the keys and values of the `tokens` tokens from `begin` stand; zeros up to whole vectors.
    void find(std::int64_t task, const std::int32_t* pages, std::int64_t begin, int tokens,
              Desk& desk) const {
        const std::int64_t page_elements = a_.page_size * a_.width, first = p_.kv_head(task) * page_elements;
        std::int64_t page = begin / a_.page_size, inside = begin % a_.page_size;
        for (int t = 0; t < tokens; ++page, inside = 0) {
            const int end = static_cast<int>(std::min<std::int64_t>(tokens, t + a_.page_size - inside));
            std::int64_t at = pages[page] * (a_.kv_heads * page_elements) + first + inside * a_.width;
            for (; t < end; ++t, at += a_.width) {
                desk.keys[t] = static_cast<const T*>(a_.k_cache) + at;
                desk.values[t] = static_cast<const T*>(a_.v_cache) + at;
            }
        }
        for (int t = tokens; t < round_up(tokens, kLanes); ++t) desk.keys[t] = desk.values[t] = desk.zeros;
    }

    // Asks for a span's first tokens while the span before it is worked on.
    void fetch(std::int64_t task, const Span& span, Desk& desk) const {
        const int tokens = static_cast<int>(std::min<std::int64_t>(kChunkTokens, span.end - span.begin));
        find(task, span.pages, span.begin, tokens, desk);
        fetch(desk.keys, tokens);
        fetch(desk.values, tokens);
    }
    void fetch(const T* const* rows, int count) const {
        for (int i = 0; i < count; ++i) {
            const char* const row = reinterpret_cast<const char*>(rows[i]);
            for (std::size_t at = 0; at < width_ * sizeof(T); at += 64)
                __builtin_prefetch(row + at, 0, kSecondCache);
        }
    }

    // Keys [tokens] x [units] become packed [units, kChunkTokens].
    void pack(const T* const* keys, int tokens, float* packed) const {
        for (int t = 0; t < tokens; t += kLanes) {
            for (int u = 0; u < units_; u += kLanes) {
                float* const to = packed + u * kChunkTokens + t;
                if ((u + kLanes) * P::kElements <= width_) {
                    turn(keys + t, u, to, kLanes, [](const T* from) { return P::units(from); });
                } else {
                    const int count = units_ - u, left = width_ - u * P::kElements;
                    turn(keys + t, u, to, count, [=](const T* from) { return P::units(from, count, left); });
                }
            }
        }
    }
    template <class Load>
    static SFTRL_INLINE void turn(const T* const* keys, int unit, float* to, int count,
                                  const Load& load_units) {
        f32x16 rows[kLanes];
        for (int i = 0; i < kLanes; ++i) rows[i] = load_units(keys[i] + unit * P::kElements);
        transpose(rows);
        for (int i = 0; i < count; ++i) store(rows[i], to + i * kChunkTokens);
    }

    // The span's queries, whose rows begin at `queries`, over its tokens.
    void attend(std::int64_t task, const Span& span, const QueryUnit* queries, Desk& desk,
                const Rows& to) const {
        const int heads = p_.heads_of(task), rows = (span.query_end - span.query_begin) * heads;
        for (std::int64_t at = span.begin; at < span.end; at += kBlockTokens) {
            const int tokens = static_cast<int>(std::min<std::int64_t>(kBlockTokens, span.end - at));
            const bool first = at == span.begin;
            const auto seen = [&](int row) {  // of the block's tokens
                const std::int64_t count = span.seen + (span.causal ? row / heads : 0) - at;
                return static_cast<int>(std::clamp<std::int64_t>(count, 0, tokens));
            };
            find(task, span.pages, at, tokens, desk);
            score(queries, rows, tokens, seen, desk);
            for (int r = 0; r < rows; ++r) {
                desk.keep[r] = softmax_row<P>(desk.scores + r * kBlockTokens, seen(r), tokens, first,
                                              to.highest[r], to.sum[r]);
            }
            add_values(rows, first ? nullptr : desk.keep, seen, desk, to);
        }
    }

    template <class Seen>
    void score(const QueryUnit* queries, int rows, int tokens, const Seen& seen, const Desk& desk) const {
        for (int chunk = 0; chunk < tokens; chunk += kChunkTokens) {
            const int count = std::min(kChunkTokens, tokens - chunk);
            fetch(desk.values + chunk, count);
            pack(desk.keys + chunk, count, desk.packed);
            for (int r = 0; r < rows; r += kTileRows) {
                const int tile = std::min(kTileRows, rows - r);
                const int end = std::min(count, seen(r + tile - 1) - chunk);
                for (int t = 0; t < end; t += kTileVectors * kLanes) {
                    const int vectors = std::min(kTileVectors, round_up(end - t, kLanes) / kLanes);
                    float* const scores = desk.scores + r * kBlockTokens + chunk + t;
                    with_constant<kTileRows>(tile, [&](auto R) {
                        with_constant<kTileVectors>(vectors, [&](auto V) {
                            score_tile<P, R, V>(queries + r * units_, units_, desk.packed + t, units_,
                                                factor_, scores);
                        });
                    });
                }
            }
        }
    }

    template <class Seen>
    void add_values(int rows, const float* keep, const Seen& seen, const Desk& desk, const Rows& to) const {
        for (int r = 0; r < rows; r += kTileRows) {
            const int tile = std::min(kTileRows, rows - r), tokens = seen(r + tile - 1);
            for (int i = 0; i < p_.stride; i += kTileVectors * kLanes) {
                with_constant<kTileRows>(tile, [&](auto R) {
                    with_constant<kTileVectors>(
                        std::min(kTileVectors, (p_.stride - i) / kLanes), [&](auto V) {
                            if constexpr (V % P::kTokens == 0) {  // stride is a multiple of both
                                value_tile<P, R, V>(desk.values, desk.scores + r * kBlockTokens, tokens, i,
                                                    width_, keep ? keep + r : nullptr,
                                                    to.values + r * to.stride + i, to.stride);
                            }
                        });
                });
            }
        }
    }

    const Plan& p_;
    const CachedAttentionArgs& a_;
    int width_, units_;
    float factor_;
};

template <class T>
void run(const Plan& plan) {
    const Attention<T> attention(plan);
    const auto each = [](std::int64_t count, const auto& work) {
        parallel_for(count, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) work(i);
        });
    };
    if (plan.slots.empty()) return each(plan.tasks(), [&](std::int64_t task) { attention.whole(task); });
    float* const slots = slot_memory.floats(plan.slot_floats);
    each(static_cast<std::int64_t>(plan.slots.size()),
         [&](std::int64_t i) { attention.single(plan.slots[static_cast<std::size_t>(i)], slots); });
    each(plan.tasks(), [&](std::int64_t task) { attention.join(task, slots); });
}

}  // namespace

void cached_attention(const CachedAttentionArgs& args) noexcept {
    const Plan plan(args);
    args.dtype == DType::kFloat32 ? run<float>(plan) : run<bf16>(plan);
}

}  // namespace sftrl::SFTRL_LEVEL
