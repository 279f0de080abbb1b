#include "sftrl/ops/cached_attention.h"

#include <vector>

#include "cached_attention_block.h"
#include "sftrl/parallel.h"

// A task is a unit of queries that share a prefix, and the query heads of one key/value head. Its rows
// (queries times heads) go over the prefix together, then each sequence's rows over its own tokens. Tokens
// are cut into spans by the length of the prefix or of the sequence alone, and a row's spans are merged in
// order: so a row's result depends neither on who shares its task nor on whether the spans of a task are
// computed side by side.

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr int kRows = 96;           // of a task, at most: they and their scores stay in the second cache
constexpr int kMostSpans = 16;      // of a prefix, and of a sequence's own tokens
constexpr int kTasksPerThread = 4;  // of even size: with fewer, threads idle at the end
constexpr int kRowsToTurn = 3;      // a block's keys are turned in the time that this many rows take
constexpr std::size_t kMostSlotFloats = std::size_t{1} << 24;

// Queries that attend together: those of whole sequences with one prefix, or some of one sequence. How a
// sequence is cut depends on nothing but its own number of queries.
struct Unit {
    std::int64_t sequence_begin, sequence_end;
    std::int64_t begin, end;  // queries
};

// Consecutive tokens of a prefix or of a sequence, and the unit's queries that look at them.
struct Span {
    const std::int32_t* pages;
    std::int64_t begin, end;
    int query_begin, query_end;  // counted from the unit's first
    std::int64_t seen;  // tokens, counted as begin is, that query_begin sees; each further query sees
    bool causal;        // one more if causal, and as many if not
};

struct Slot {  // a span of a task that is computed beside the task's other spans
    std::int64_t task;
    Span span;
    std::size_t at;  // where its Rows stand
};

struct alignas(64) Line {
    float lanes[kLanes];
};

// Memory of one thread, kept from call to call and grown to the widest head seen.
struct Memory {
    std::vector<Line> lines;
    float* floats(std::size_t count) {
        if (lines.size() * kLanes < count) lines.resize(count / kLanes + 1);
        return lines[0].lanes;
    }
};
thread_local Memory desk_memory, slot_memory;

int span_tokens(std::int64_t tokens) {
    const std::int64_t most = std::int64_t{kMostSpans} * kBlockTokens;
    return static_cast<int>((tokens + most - 1) / most * kBlockTokens);
}

// What does not depend on the element type: the cutting of the work.
class Plan {
  public:
    explicit Plan(const CachedAttentionArgs& args)
        : a(args), ratio(static_cast<int>(a.query_heads / a.kv_heads)) {
        pieces = (ratio + kRows - 1) / kRows;
        heads = (ratio + pieces - 1) / pieces;
        stride = round_up(static_cast<int>(a.width), 2 * kLanes);
        cut();
        list_slots();
    }

    const CachedAttentionArgs& a;
    int ratio;   // query heads of a key/value head
    int pieces;  // these are cut into, of `heads` each at most
    int heads;
    int stride;  // floats of a row of values
    std::vector<Unit> units;
    std::vector<Slot> slots;          // empty: a task computes its spans itself
    std::vector<std::size_t> firsts;  // [tasks + 1], into slots
    std::size_t slot_floats = 0;

    std::int64_t tasks() const { return static_cast<std::int64_t>(units.size()) * a.kv_heads * pieces; }
    const Unit& unit(std::int64_t task) const {
        return units[static_cast<std::size_t>(task / (a.kv_heads * pieces))];
    }
    int kv_head(std::int64_t task) const { return static_cast<int>(task / pieces % a.kv_heads); }
    int first_head(std::int64_t task) const {  // of its key/value head's
        return static_cast<int>(task % pieces) * heads;
    }
    int heads_of(std::int64_t task) const { return std::min(heads, ratio - first_head(task)); }

    // f(span) for the spans of a unit, in the order in which they are merged.
    template <class F>
    void each_span(const Unit& unit, const F& f) const {
        const std::int32_t prefix = a.prefix_of[unit.sequence_begin];
        const std::int64_t length = a.prefix_lengths[prefix];
        for (std::int64_t at = 0, step = span_tokens(length); at < length; at += step) {
            f(Span{a.prefix_pages + prefix * a.prefix_stride, at, std::min(at + step, length), 0,
                   static_cast<int>(unit.end - unit.begin), length, false});
        }
        for (std::int64_t s = unit.sequence_begin; s < unit.sequence_end; ++s) {
            const std::int64_t begin = std::max<std::int64_t>(a.query_offsets[s], unit.begin);
            const std::int64_t end = std::min<std::int64_t>(a.query_offsets[s + 1], unit.end);
            const std::int64_t ahead = a.own_lengths[s] - a.query_offsets[s + 1];  // may be below 0
            for (std::int64_t at = 0, step = span_tokens(a.own_lengths[s]); at < ahead + end; at += step) {
                f(Span{a.own_pages + s * a.own_stride, at, std::min(at + step, ahead + end),
                       static_cast<int>(begin - unit.begin), static_cast<int>(end - unit.begin),
                       ahead + begin + 1, true});
            }
        }
    }

  private:
    void cut() {
        const std::int64_t most = std::max(1, kRows / heads);
        bool open = false;  // the last unit may take further sequences
        for (std::int64_t s = 0; s < a.sequences; ++s) {
            const std::int64_t begin = a.query_offsets[s], end = a.query_offsets[s + 1];
            if (open && end - units.back().begin <= most && a.prefix_of[s] == a.prefix_of[s - 1]) {
                units.back().sequence_end = s + 1;
                units.back().end = end;
                continue;
            }
            for (std::int64_t at = begin; at < end; at += most) {
                units.push_back({s, s + 1, at, std::min(at + most, end)});
            }
            open = end - begin <= most;
        }
    }

    // Few tasks, or uneven ones, leave threads idle: then their spans are computed side by side.
    void list_slots() {
        const int threads = max_threads();
        std::int64_t total = 0, largest = 0;
        for (const Unit& unit : units) {
            std::int64_t cost = 0;
            each_span(unit, [&](const Span& span) {
                cost += (span.end - span.begin) * (heads * (span.query_end - span.query_begin) + kRowsToTurn);
            });
            total += cost * a.kv_heads * pieces;
            largest = std::max(largest, cost);
        }
        if (threads == 1 || largest * kTasksPerThread * threads <= total) return;
        for (std::int64_t task = 0; task < tasks(); ++task) {
            firsts.push_back(slots.size());
            each_span(unit(task), [&](const Span& span) {
                slots.push_back({task, span, slot_floats});
                const int rows = heads_of(task) * (span.query_end - span.query_begin);
                slot_floats += static_cast<std::size_t>(round_up(rows, kLanes)) * (stride + 2);
            });
        }
        firsts.push_back(slots.size());
        if (slot_floats > kMostSlotFloats) slots.clear();
    }
};

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
        p_.each_span(unit, [&](const Span& span) {
            const int first = span.query_begin * p_.heads_of(task);
            attend(task, span, desk.queries + first * units_, desk, desk.part);
            merge(desk.rows.from(first), desk.part, (span.query_end - span.query_begin) * p_.heads_of(task));
        });
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
            T* const to = static_cast<T*>(a_.out) + row_offset(task, r / heads, r % heads);
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

    // Keys [tokens] x [units] become packed [units, kChunkTokens].
    void pack(const T* const* keys, int tokens, float* packed) const {
        for (int t = 0; t < tokens; t += kLanes) {
            for (int u = 0; u < units_; u += kLanes) {
                const int count = std::min(kLanes, units_ - u);
                f32x16 rows[kLanes];
                for (int i = 0; i < kLanes; ++i) {
                    rows[i] = P::units(keys[t + i] + u * P::kElements, count, width_ - u * P::kElements);
                }
                transpose(rows);
                for (int i = 0; i < count; ++i) store(rows[i], packed + (u + i) * kChunkTokens + t);
            }
        }
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
