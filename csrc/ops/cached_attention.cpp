#include "sftrl/ops/cached_attention.h"

#include <cmath>
#include <limits>
#include <vector>

#include "cached_attention_amx.h"
#include "cached_attention_block.h"
#include "cached_attention_plan.h"
#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

using namespace cached;

constexpr int kSecondCache = 2;              // of __builtin_prefetch
constexpr std::int64_t kPartsPerThread = 2;  // at least, of the tasks: what follows is known within a part
constexpr std::int64_t kMostInPart = 8;      // tasks, for those of one long sequence lie side by side
// At each place where some are asked for. 2 are too few to have them in time, and all at once cost as much as
// none.
constexpr int kLinesAtOnce = 6;
constexpr int kAll = std::numeric_limits<int>::max();

struct alignas(64) Line {
    float lanes[kLanes];
};

// Memory of one thread, kept from call to call and grown to the widest head seen.
struct Memory {
    std::vector<Line> lines;
    std::vector<Step> steps;
    float* floats(std::size_t count) {
        if (lines.size() * kLanes < count) lines.resize(count / kLanes + 1);
        return lines[0].lanes;
    }
};
thread_local Memory desk_memory, slot_memory;

template <class T, class Tiles>
class Attention {
    using P = Arithmetic<T>;
    using QueryUnit = typename P::Unit;

  public:
    Attention(const Plan& plan, const CachedAttentionArgs& args)
        : p_(plan),
          a_(args),
          width_(static_cast<int>(a_.width)),
          units_((width_ + P::kElements - 1) / P::kElements),
          factor_(a_.scale * 1.44269504f) {}  // log2(e): weights are powers of 2

    // All spans of some tasks, one after another.
    void whole(std::int64_t begin, std::int64_t end) const {
        const typename Tiles::Scope scope;
        Desk desk = sit();
        std::vector<Step>& steps = desk_memory.steps;
        steps.clear();
        for (std::int64_t task = begin; task < end; ++task) {
            p_.each_span(p_.unit(task), [&](const Span& span) { steps.push_back({task, span}); });
        }
        std::size_t i = 0;
        Coming coming = next(steps.data(), i, steps.size());
        for (std::int64_t task = begin; task < end; ++task) {
            const Unit& unit = p_.unit(task);
            read_queries(task, 0, static_cast<int>(unit.end - unit.begin), desk);
            begin_rows(task, desk.rows);
            for (; i < steps.size() && steps[i].task == task; ++i) {
                coming.ask_for(kAll);
                coming = next(steps.data(), i + 1, steps.size());
                const Span& span = steps[i].span;
                const int first = span.query_begin * p_.heads_of(task);
                attend(steps[i], desk.queries + first * units_, desk, desk.part, coming);
                merge(desk.rows.from(first), desk.part,
                      (span.query_end - span.query_begin) * p_.heads_of(task));
            }
            write(task, desk.rows);
        }
    }

    // Spans of any tasks, each left at its slot.
    void apart(std::int64_t begin, std::int64_t end, float* slots) const {
        const typename Tiles::Scope scope;
        Desk desk = sit();
        Coming coming = next(p_.slots.data(), begin, end);
        for (std::int64_t i = begin; i < end; ++i) {
            const Slot& slot = p_.slots[static_cast<std::size_t>(i)];
            coming.ask_for(kAll);
            coming = next(p_.slots.data(), i + 1, end);
            read_queries(slot.task, slot.span.query_begin, slot.span.query_end, desk);
            attend(slot, desk.queries, desk, at(slot, slots), coming);
        }
    }

    // What `whole` would have made of the spans at a task's slots.
    void join(std::int64_t task, float* slots) const {
        Desk desk = sit();
        begin_rows(task, desk.rows);
        const auto at_task = static_cast<std::size_t>(task);
        for (std::size_t i = p_.firsts[at_task]; i < p_.firsts[at_task + 1]; ++i) {
            const Span& span = p_.slots[i].span;
            merge(desk.rows.from(span.query_begin * p_.heads_of(task)), at(p_.slots[i], slots),
                  (span.query_end - span.query_begin) * p_.heads_of(task));
        }
        write(task, desk.rows);
    }

  private:
    // A thread's memory, sized for kTaskRows rows, and the block of tokens in hand.
    struct Desk {
        float *scores, *packed;
        float* turned;       // [kBlockTokens / kTokens, stride] if the tiles want it
        QueryUnit* queries;  // [kTaskRows, units_], and a tile's rows more
        T* zeros;            // [width_], in the place of tokens that are not there
        Rows rows, part;
        const T* keys[kBlockTokens];
        const T* values[kBlockTokens];
    };

    Desk sit() const {
        const std::size_t scores = kTaskRows * kBlockTokens,
                          units = static_cast<std::size_t>(round_up(units_, kLanes));
        const std::size_t packed = units * kChunkTokens, queries = (kTaskRows + Tiles::kRows) * units;
        const std::size_t zeros = p_.stride;
        const std::size_t turned = Tiles::kTurned ? kBlockTokens / P::kTokens * zeros : 0;
        const std::size_t rows = Rows::floats(kTaskRows, p_.stride);
        float* free = desk_memory.floats(scores + packed + turned + queries + zeros + 2 * rows);
        const auto take = [&free](std::size_t floats) { return (free += floats) - floats; };
        Desk desk;
        desk.scores = take(scores);
        desk.packed = take(packed);
        desk.turned = take(turned);
        desk.queries = reinterpret_cast<QueryUnit*>(take(queries));
        desk.zeros = reinterpret_cast<T*>(take(zeros));
        desk.rows = Rows::at(take(rows), kTaskRows, p_.stride);
        desk.part = Rows::at(take(rows), kTaskRows, p_.stride);
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
                    // Whole vectors: the next row comes over what is too much, and the last has a tile's
                    // rows behind it.
                    std::memcpy(to + u, &units, sizeof units);
                }
            }
        }
    }

    void begin_rows(std::int64_t task, const Rows& rows) const {
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

    // Where the keys and values of the `tokens` tokens from `begin` stand; zeros up to whole tiles.
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
        for (int t = tokens; t < round_up(tokens, 2 * kLanes); ++t)
            desk.keys[t] = desk.values[t] = desk.zeros;
    }

    // The cache lines of a step that comes after this one. They are asked for a few at a time amid the work:
    // all at once, the work would wait for its own loads behind them.
    class Coming {
      public:
        Coming() = default;  // nothing
        Coming(const Attention& attention, const Step& step)
            : a_(&attention.a_),
              token_bytes_(a_->width * static_cast<std::int64_t>(sizeof(T))),
              head_(attention.p_.kv_head(step.task)),
              page_(step.span.pages + step.span.begin / a_->page_size),
              left_((step.span.end - step.span.begin) * token_bytes_) {
            turn_to(step.span.begin % a_->page_size * token_bytes_);
        }
        void ask_for(int lines) {  // of the keys, and as many of the values
            for (; lines > 0 && at_ < end_; --lines) {
                __builtin_prefetch(static_cast<const std::byte*>(a_->k_cache) + at_, 0, kSecondCache);
                __builtin_prefetch(static_cast<const std::byte*>(a_->v_cache) + at_, 0, kSecondCache);
                at_ += kLine;
                if (at_ >= end_ && left_ > 0) {
                    ++page_;
                    turn_to(0);
                }
            }
        }

      private:
        void turn_to(std::int64_t inside) {
            const std::int64_t page_bytes = a_->page_size * token_bytes_;
            const std::int64_t here = std::min(left_, page_bytes - inside);
            at_ = (*page_ * a_->kv_heads + head_) * page_bytes + inside;
            end_ = at_ + here;
            left_ -= here;
        }
        const CachedAttentionArgs* a_ = nullptr;
        std::int64_t token_bytes_ = 0, head_ = 0;
        const std::int32_t* page_ = nullptr;
        std::int64_t left_ = 0;  // bytes on the pages behind this one
        std::int64_t at_ = 0, end_ = 0;
    };

    template <class AStep>
    Coming next(const AStep* steps, std::size_t i, std::size_t count) const {
        return i < count ? Coming(*this, steps[i]) : Coming();
    }

    // Keys [tokens] x [units] become packed [units, kChunkTokens].
    void pack(const T* const* keys, int tokens, float* packed, Coming& coming) const {
        for (int t = 0; t < tokens; t += kLanes) {
            for (int u = 0; u < units_; u += kLanes) {
                float* const to = packed + u * kChunkTokens + t;
                if ((u + kLanes) * P::kElements <= width_) {
                    turn(keys + t, u, to, kLanes, [](const T* from) { return P::units(from); });
                } else {
                    const int count = units_ - u, left = width_ - u * P::kElements;
                    turn(keys + t, u, to, count, [=](const T* from) { return P::units(from, count, left); });
                }
                coming.ask_for(kLinesAtOnce);
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

    // The step's queries, whose rows begin at `queries`, over its tokens.
    void attend(const Step& step, const QueryUnit* queries, Desk& desk, const Rows& to,
                Coming& coming) const {
        const Span& span = step.span;
        const int heads = p_.heads_of(step.task), rows = (span.query_end - span.query_begin) * heads;
        const int tokens = static_cast<int>(span.end - span.begin);
        const auto seen = [&](int row) {  // of the span's tokens
            const std::int64_t count = span.seen + (span.causal ? row / heads : 0) - span.begin;
            return static_cast<int>(std::clamp<std::int64_t>(count, 0, tokens));
        };
        find(step.task, span.pages, span.begin, tokens, desk);
        score(queries, rows, tokens, seen, desk, coming);
        for (int r = 0; r < rows; ++r) {
            softmax_row<P>(desk.scores + r * kBlockTokens, seen(r), tokens, to.highest[r], to.sum[r]);
            coming.ask_for(kLinesAtOnce);
        }
        add_values(rows, seen, desk, to, coming);
    }

    template <class Seen>
    void score(const QueryUnit* queries, int rows, int tokens, const Seen& seen, const Desk& desk,
               Coming& coming) const {
        for (int chunk = 0; chunk < tokens; chunk += kChunkTokens) {
            const int count = std::min(kChunkTokens, tokens - chunk);
            pack(desk.keys + chunk, count, desk.packed, coming);
            for (int r = 0; r < rows; r += Tiles::kRows) {
                const int tile = std::min(Tiles::kRows, rows - r);
                const int end = std::min(count, seen(r + tile - 1) - chunk);
                for (int t = 0; t < end; t += Tiles::kVectors * kLanes) {
                    const int vectors = std::min(Tiles::kVectors, round_up(end - t, kLanes) / kLanes);
                    float* const scores = desk.scores + r * kBlockTokens + chunk + t;
                    Tiles::scores({queries + r * units_, desk.packed + t, units_, factor_, scores}, tile,
                                  vectors);
                    coming.ask_for(kLinesAtOnce);
                }
            }
        }
    }

    template <class Seen>
    void add_values(int rows, const Seen& seen, const Desk& desk, const Rows& to, Coming& coming) const {
        if constexpr (Tiles::kTurned) turn_values(seen(rows - 1), desk, coming);
        for (int r = 0; r < rows; r += Tiles::kRows) {
            const int tile = std::min(Tiles::kRows, rows - r), tokens = seen(r + tile - 1);
            for (int i = 0; i < p_.stride; i += Tiles::kVectors * kLanes) {
                const int vectors = std::min(Tiles::kVectors, (p_.stride - i) / kLanes);
                Tiles::values({desk.values, desk.turned, desk.scores + r * kBlockTokens, tokens, i, width_,
                               to.values + r * to.stride + i, to.stride},
                              tile, vectors);
                coming.ask_for(kLinesAtOnce);
            }
        }
    }

    // Values [tokens] become turned [tokens / kTokens, stride], in the arithmetic's order.
    void turn_values(int tokens, const Desk& desk, Coming& coming) const {
        float* to = desk.turned;
        for (int t = 0; t < round_up(tokens, 2 * kLanes); t += P::kTokens) {
            for (int i = 0; i < p_.stride; i += 2 * kLanes, to += 2 * kLanes) {
                f32x16 values[2];
                P::template values<2>(desk.values + t, i, width_, values);
                store(values[0], to);
                store(values[1], to + kLanes);
            }
            if (t % kLanes == 0) coming.ask_for(kLinesAtOnce);
        }
    }

    const Plan& p_;
    const CachedAttentionArgs& a_;
    int width_, units_;
    float factor_;
};

// body(begin, end) over even parts of [0, count), if it is large enough a multiple of the threads.
template <class Body>
void in_parts(std::int64_t count, const Body& body) {
    const std::int64_t threads = max_threads(), most = kMostInPart * threads;
    const std::int64_t parts =
        std::min(count, std::max(kPartsPerThread, (count + most - 1) / most) * threads);
    parallel_for(parts, 1, [&](std::int64_t part, std::int64_t) {
        body(part * count / parts, (part + 1) * count / parts);
    });
}

template <class T, class Tiles>
void run(const Plan& plan, const CachedAttentionArgs& args) {
    const Attention<T, Tiles> attention(plan, args);
    if (plan.slots.empty()) {
        return in_parts(plan.tasks(),
                        [&](std::int64_t begin, std::int64_t end) { attention.whole(begin, end); });
    }
    float* const slots = slot_memory.floats(plan.slot_floats);
    in_parts(static_cast<std::int64_t>(plan.slots.size()),
             [&](std::int64_t begin, std::int64_t end) { attention.apart(begin, end, slots); });
    parallel_for(plan.tasks(), 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t task = begin; task < end; ++task) attention.join(task, slots);
    });
}

}  // namespace

void cached::attend(const Plan& plan, const CachedAttentionArgs& args) noexcept {
    if (args.dtype == DType::kFloat32) return run<float, VectorTiles<Arithmetic<float>>>(plan, args);
#if defined(__AMX_BF16__)
    if (MatrixTiles::covers(static_cast<int>(args.width))) return run<bf16, MatrixTiles>(plan, args);
#endif
    run<bf16, VectorTiles<Arithmetic<bf16>>>(plan, args);
}

void cached_attention(const CachedAttentionArgs& args) noexcept { cached::attend(Plan(args), args); }

}  // namespace sftrl::SFTRL_LEVEL
