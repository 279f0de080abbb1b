// Attention over a paged cache against a plain loop in double, at every level and with threads, without
// Python.
#include "sftrl/ops/cached_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "sftrl/parallel.h"

namespace {

using namespace sftrl;

using test::failures, test::threads;

// Every float has 8 bits of mantissa, so both element types hold the same numbers.
struct Numbers {
    DType dtype;
    std::vector<float> floats;
    std::vector<std::uint16_t> halves;
    Numbers(DType type, std::size_t count, float value) : dtype(type), floats(count), halves(count) {
        for (std::size_t i = 0; i < count; ++i) set(i, value);
    }
    void set(std::size_t i, float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        halves[i] = static_cast<std::uint16_t>(bits >> 16);
        bits &= 0xFFFF0000u;
        std::memcpy(&floats[i], &bits, sizeof bits);
    }
    float result(std::size_t i) const {
        if (dtype == DType::kFloat32) return floats[i];
        const std::uint32_t bits = static_cast<std::uint32_t>(halves[i]) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    void* data() {
        return dtype == DType::kFloat32 ? static_cast<void*>(floats.data())
                                        : static_cast<void*>(halves.data());
    }
};

struct Sequence {
    int prefix, own, queries;
};

struct Batch {
    std::int64_t query_heads, kv_heads, page, width;
    std::vector<std::int32_t> offsets{0}, prefix_of, prefix_pages, prefix_lengths, own_pages, own_lengths;
    std::int64_t prefix_stride, own_stride, pages = 0;
    Numbers q, k, v, out;

    Batch(DType type, std::int64_t hq, std::int64_t hkv, std::int64_t page_size, std::int64_t dh,
          const std::vector<int>& prefixes, const std::vector<Sequence>& sequences)
        : query_heads(hq), kv_heads(hkv), page(page_size), width(dh), q(type, 0, 0), k(q), v(q), out(q) {
        prefix_stride = own_stride = 1;
        for (const int length : prefixes) prefix_stride = std::max(prefix_stride, (length + page - 1) / page);
        for (const Sequence& s : sequences) own_stride = std::max(own_stride, (s.own + page - 1) / page);
        for (const int length : prefixes) add(prefix_pages, prefix_lengths, prefix_stride, length);
        for (const Sequence& s : sequences) {
            prefix_of.push_back(s.prefix);
            offsets.push_back(offsets.back() + s.queries);
            add(own_pages, own_lengths, own_stride, s.own);
        }
        const float nan = std::numeric_limits<float>::quiet_NaN();
        const auto rows = static_cast<std::size_t>(offsets.back() * query_heads * width);
        const auto cache = static_cast<std::size_t>(pages * kv_heads * page * width);
        q = out = Numbers(type, rows, nan);
        k = v = Numbers(type, cache, nan);
        for (std::size_t i = 0; i < rows; ++i) q.set(i, next());
        for (std::size_t p = 0; p < prefixes.size(); ++p) fill(prefix_pages, prefix_stride, p, prefixes[p]);
        for (std::size_t s = 0; s < sequences.size(); ++s) fill(own_pages, own_stride, s, sequences[s].own);
    }

    CachedAttentionArgs args() {
        return {q.data(),
                k.data(),
                v.data(),
                out.data(),
                offsets.data(),
                prefix_of.data(),
                prefix_pages.data(),
                prefix_lengths.data(),
                own_pages.data(),
                own_lengths.data(),
                static_cast<std::int64_t>(own_lengths.size()),
                prefix_stride,
                own_stride,
                query_heads,
                kv_heads,
                page,
                width,
                0.25f,
                q.dtype};
    }

    std::size_t place(const std::vector<std::int32_t>& table, std::int64_t stride, std::size_t row, int token,
                      std::int64_t head) const {
        const std::int32_t number = table[row * static_cast<std::size_t>(stride) + token / page];
        return static_cast<std::size_t>(((number * kv_heads + head) * page + token % page) * width);
    }

    // The greatest distance of a result from the definition's.
    double error() const {
        double worst = 0;
        for (std::size_t s = 0; s < own_lengths.size(); ++s) {
            for (std::int32_t t = offsets[s]; t < offsets[s + 1]; ++t) {
                for (std::int64_t h = 0; h < query_heads; ++h) worst = std::max(worst, row_error(s, t, h));
            }
        }
        return worst;
    }

  private:
    std::uint32_t state = 1;
    float next() {
        state = state * 1664525u + 1013904223u;
        return static_cast<float>(static_cast<int>(state >> 25) - 64) / 32.0f;
    }
    void add(std::vector<std::int32_t>& table, std::vector<std::int32_t>& lengths, std::int64_t stride,
             int length) {
        const std::int64_t used = (length + page - 1) / page;
        for (std::int64_t i = 0; i < stride; ++i) {
            table.push_back(i < used ? static_cast<std::int32_t>(pages++) : 1 << 30);
        }
        lengths.push_back(length);
    }
    void fill(const std::vector<std::int32_t>& table, std::int64_t stride, std::size_t row, int length) {
        for (int token = 0; token < length; ++token) {
            for (std::int64_t head = 0; head < kv_heads; ++head) {
                const std::size_t at = place(table, stride, row, token, head);
                for (std::size_t i = 0; i < static_cast<std::size_t>(width); ++i) {
                    k.set(at + i, next());
                    v.set(at + i, next());
                }
            }
        }
    }
    double row_error(std::size_t s, std::int32_t t, std::int64_t head) const {
        const auto prefix = static_cast<std::size_t>(prefix_of[s]);
        const auto from = static_cast<std::size_t>((t * query_heads + head) * width),
                   w = static_cast<std::size_t>(width);
        const int shared = prefix_lengths[prefix], seen = own_lengths[s] - (offsets[s + 1] - t) + 1;
        std::vector<double> sum(w);
        double total = 0;
        for (int token = 0; token < shared + seen; ++token) {
            const std::int64_t kv = head * kv_heads / query_heads;
            const std::size_t at = token < shared ? place(prefix_pages, prefix_stride, prefix, token, kv)
                                                  : place(own_pages, own_stride, s, token - shared, kv);
            double score = 0;
            for (std::size_t i = 0; i < w; ++i) score += double{q.floats[from + i]} * k.floats[at + i];
            const double weight = std::exp(0.25 * score);
            total += weight;
            for (std::size_t i = 0; i < w; ++i) sum[i] += weight * v.floats[at + i];
        }
        double worst = 0;
        for (std::size_t i = 0; i < w; ++i) {
            const double distance = std::fabs(sum[i] / total - double{out.result(from + i)});
            worst = std::isnan(distance) ? 1e30 : std::max(worst, distance);
        }
        return worst;
    }
};

const std::vector<int> kPrefixes{0, 37, 300};
const std::vector<Sequence> kSequences{{0, 1, 1}, {0, 50, 50}, {1, 20, 1},
                                       {1, 3, 1}, {1, 64, 2},  {2, 290, 40}};

void test_every_level() {
    const Level best = level();
    for (int i = 0; i <= static_cast<int>(best); ++i) {
        CHECK(set_level(static_cast<Level>(i)));
        for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
            for (const std::int64_t width : {8, 40, 64, 96, 33}) {
                Batch batch(type, 6, 2, width == 40 ? 1 : 16, width, kPrefixes, kSequences);
                cached_attention(batch.args());
                CHECK(batch.error() < (type == DType::kFloat32 ? 2e-5 : 1e-2));
            }
            // As many rows as a task takes, the last of them alone over their own tokens.
            Batch full(type, 6, 2, 16, 64, {37}, std::vector<Sequence>(32, {0, 3, 1}));
            cached_attention(full.args());
            CHECK(full.error() < (type == DType::kFloat32 ? 2e-5 : 1e-2));
        }
    }
    CHECK(set_level(best));
}

// One long sequence: its spans are computed side by side, and give what they give one after another.
void test_threads_change_nothing() {
    Batch batch(DType::kBFloat16, 3, 1, 16, 64, {600}, {{0, 1500, 2}, {0, 9, 1}});
    cached_attention(batch.args());
    CHECK(batch.error() < 1e-2);
    const std::vector<std::uint16_t> alone = batch.out.halves;
    set_thread_runner(&threads, 4);
    std::fill(batch.out.halves.begin(), batch.out.halves.end(), std::uint16_t{0x7FC0});
    cached_attention(batch.args());
    CHECK(batch.out.halves == alone);
    test_every_level();
    set_thread_runner(nullptr, 1);
}

}  // namespace

int main() {
    test_every_level();
    test_threads_change_nothing();
    return failures == 0 ? 0 : 1;
}
