// How cached_attention cuts its work.
//
// A task is a unit of queries that share a prefix, and the query heads of one key/value head. Its rows
// (queries times heads) go over the prefix together, then each sequence's rows over its own tokens. Tokens
// are cut into spans of one length, and a row's spans are merged in order: so a row's result depends neither
// on who shares its task, nor on how much of its sequence there is behind it, nor on whether the spans of a
// task are computed side by side.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cached_attention_block.h"
#include "sftrl/ops/cached_attention.h"
#include "sftrl/parallel.h"

namespace sftrl::SFTRL_LEVEL::cached {

inline constexpr int kTaskRows = 96;  // of a task, at most: they and their scores stay in the second cache
inline constexpr std::int64_t kSpanTokens = kBlockTokens;
inline constexpr int kTasksPerThread = 4;  // of even size: with fewer, threads idle at the end
inline constexpr int kRowsToTurn = 3;      // a block's keys are turned in the time that this many rows take
inline constexpr std::size_t kMostSlotFloats = std::size_t{1} << 24;

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

struct Step {
    std::int64_t task;
    Span span;
};

struct Slot : Step {  // done beside the other steps of its task
    std::size_t at;   // where its Rows stand
};

// What does not depend on the element type: the cutting of the work.
class Plan {
  public:
    explicit Plan(const CachedAttentionArgs& args)
        : a(args), ratio(static_cast<int>(a.query_heads / a.kv_heads)) {
        pieces = (ratio + kTaskRows - 1) / kTaskRows;
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
        for (std::int64_t at = 0; at < length; at += kSpanTokens) {
            f(Span{a.prefix_pages + prefix * a.prefix_stride, at, std::min(at + kSpanTokens, length), 0,
                   static_cast<int>(unit.end - unit.begin), length, false});
        }
        for (std::int64_t s = unit.sequence_begin; s < unit.sequence_end; ++s) {
            const std::int64_t begin = std::max<std::int64_t>(a.query_offsets[s], unit.begin);
            const std::int64_t end = std::min<std::int64_t>(a.query_offsets[s + 1], unit.end);
            const std::int64_t ahead = a.own_lengths[s] - a.query_offsets[s + 1];  // may be below 0
            for (std::int64_t at = 0; at < ahead + end; at += kSpanTokens) {
                f(Span{a.own_pages + s * a.own_stride, at, std::min(at + kSpanTokens, ahead + end),
                       static_cast<int>(begin - unit.begin), static_cast<int>(end - unit.begin),
                       ahead + begin + 1, true});
            }
        }
    }

  private:
    void cut() {
        const std::int64_t most = std::max(1, kTaskRows / heads);
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
                slots.push_back({{task, span}, slot_floats});
                const int rows = heads_of(task) * (span.query_end - span.query_begin);
                slot_floats += static_cast<std::size_t>(round_up(rows, kLanes)) * (stride + 2);
            });
        }
        firsts.push_back(slots.size());
        if (slot_floats > kMostSlotFloats) slots.clear();
    }
};

// cached_attention of args that are those of the plan, which still live, but for q, caches, out and lse.
void attend(const Plan& plan, const CachedAttentionArgs& args) noexcept;

}  // namespace sftrl::SFTRL_LEVEL::cached
