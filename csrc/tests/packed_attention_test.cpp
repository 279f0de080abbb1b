// Attention over packed rows with shared parents, the cache's kernel forward and its own backward, against
// plain loops in double, at every level and with threads, without Python.
#include "sftrl/ops/packed_attention.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "sftrl/ops/cached_attention.h"
#include "sftrl/parallel.h"

namespace {

using namespace sftrl;

using test::failures, test::threads;

// A tensor whose memory ends where its elements do, so that a sanitizer sees a step outside. Its numbers
// have 8 bits of mantissa: both element types hold the same.
class Tensor {
  public:
    Tensor(DType type, std::int64_t count)
        : dtype_(type), bytes_(static_cast<std::size_t>(count) * (type == DType::kFloat32 ? 4 : 2), 0xFF) {}
    std::size_t size() const { return bytes_.size() / (dtype_ == DType::kFloat32 ? 4 : 2); }
    void* data() { return bytes_.data(); }
    const std::vector<unsigned char>& bytes() const { return bytes_; }
    void set(std::size_t i, float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        const auto half = static_cast<std::uint16_t>(bits >> 16);
        bits &= 0xFFFF0000u;
        dtype_ == DType::kFloat32 ? std::memcpy(&bytes_[4 * i], &bits, 4)
                                  : std::memcpy(&bytes_[2 * i], &half, 2);
    }
    double get(std::size_t i) const {
        std::uint32_t bits = 0;
        if (dtype_ == DType::kFloat32) {
            std::memcpy(&bits, &bytes_[4 * i], 4);
        } else {
            std::uint16_t half;
            std::memcpy(&half, &bytes_[2 * i], 2);
            bits = static_cast<std::uint32_t>(half) << 16;
        }
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return static_cast<double>(value);
    }
    std::vector<double> values() const {
        std::vector<double> out(size());
        for (std::size_t i = 0; i < out.size(); ++i) out[i] = get(i);
        return out;
    }
    // The greatest distance from what it should hold, of the greatest that it should hold.
    double error(const std::vector<double>& exact) const {
        double worst = 0, largest = 1e-3;
        for (std::size_t i = 0; i < exact.size(); ++i) {
            const double distance = std::fabs(get(i) - exact[i]);
            if (std::isnan(distance)) return std::numeric_limits<double>::infinity();
            worst = std::max(worst, distance);
            largest = std::max(largest, std::fabs(exact[i]));
        }
        return worst / largest;
    }

  private:
    DType dtype_;
    std::vector<unsigned char> bytes_;
};

struct Segment {
    int tokens, parent;
};

struct Exact {
    std::vector<double> q, k, v, grad, out, grad_q, grad_k, grad_v;
};

// Memory at a boundary of 64 bytes that ends where it was asked to, with NaN everywhere.
struct Scratch {
    std::unique_ptr<float, void (*)(void*)> memory{nullptr, &std::free};
    explicit Scratch(std::int64_t floats) {
        void* at = nullptr;
        const auto bytes = static_cast<std::size_t>(floats) * 4;
        if (posix_memalign(&at, 64, bytes) != 0) std::abort();
        std::memset(at, 0xFF, bytes);
        memory.reset(static_cast<float*>(at));
    }
};

struct Batch {
    std::int64_t query_heads, kv_heads, width;
    DType dtype;
    std::vector<std::int32_t> offsets{0}, parent;
    Tensor q, k, v, grad, out, grad_q, grad_k, grad_v;
    std::vector<float> lse;

    Batch(DType type, std::int64_t hq, std::int64_t hkv, std::int64_t dh,
          const std::vector<Segment>& segments)
        : query_heads(hq),
          kv_heads(hkv),
          width(dh),
          dtype(type),
          q(type, tokens(segments) * hq * dh),
          k(type, tokens(segments) * hkv * dh),
          v(k),
          grad(q),
          out(q),
          grad_q(q),
          grad_k(k),
          grad_v(k),
          lse(static_cast<std::size_t>(tokens(segments) * hq), std::numeric_limits<float>::quiet_NaN()) {
        for (const Segment& s : segments) {
            offsets.push_back(offsets.back() + s.tokens);
            parent.push_back(s.parent);
        }
        for (Tensor* const part : {&q, &k, &v, &grad}) {
            for (std::size_t i = 0; i < part->size(); ++i) part->set(i, next());
        }
    }

    void run() {
        attend();
        PackedAttentionBackwardArgs args{q.data(),       k.data(),
                                         v.data(),       offsets.data(),
                                         parent.data(),  out.data(),
                                         lse.data(),     nullptr,
                                         offsets.back(), static_cast<std::int64_t>(parent.size()),
                                         query_heads,    kv_heads,
                                         width,          0.25f,
                                         dtype,          grad.data(),
                                         grad_q.data(),  grad_k.data(),
                                         grad_v.data()};
        const Scratch scratch(packed_attention_backward_scratch(args, level()));
        args.scratch = scratch.memory.get();
        packed_attention_backward(args);
    }

    // The forward: keys and values are a cache with a page a token.
    void attend() {
        std::vector<std::int32_t> queries, prefix_of, prefix_pages, prefix_lengths, own_pages, own_lengths;
        const std::int32_t stride = offsets.back();
        const auto pages = [&](std::vector<std::int32_t>& to, std::int32_t from) {
            for (std::int32_t i = 0; i < stride; ++i) to.push_back(from + i);
        };
        for (std::size_t s = 0; s < parent.size(); ++s) {
            if (offsets[s + 1] == offsets[s]) continue;
            const auto p = static_cast<std::size_t>(std::max(parent[s], 0));
            queries.push_back(offsets[s]);
            prefix_of.push_back(static_cast<std::int32_t>(prefix_lengths.size()));
            prefix_lengths.push_back(parent[s] < 0 ? 0 : offsets[p + 1] - offsets[p]);
            own_lengths.push_back(offsets[s + 1] - offsets[s]);
            pages(prefix_pages, offsets[p]);
            pages(own_pages, offsets[s]);
        }
        queries.push_back(stride);
        cached_attention({q.data(),
                          k.data(),
                          v.data(),
                          out.data(),
                          queries.data(),
                          prefix_of.data(),
                          prefix_pages.data(),
                          prefix_lengths.data(),
                          own_pages.data(),
                          own_lengths.data(),
                          static_cast<std::int64_t>(own_lengths.size()),
                          stride,
                          stride,
                          query_heads,
                          kv_heads,
                          1,
                          width,
                          0.25f,
                          dtype,
                          lse.data()});
    }

    std::vector<std::vector<unsigned char>> results() const {
        return {out.bytes(), grad_q.bytes(), grad_k.bytes(), grad_v.bytes()};
    }

    Exact exact() const {
        const std::vector<double> queries(q.size()), keys(k.size());
        Exact x{q.values(), k.values(), v.values(), grad.values(), queries, queries, keys, keys};
        for (std::size_t s = 0; s < parent.size(); ++s) {
            for (std::int32_t t = offsets[s]; t < offsets[s + 1]; ++t) {
                for (std::int64_t h = 0; h < query_heads; ++h) exact_row(s, t, h, x);
            }
        }
        return x;
    }

  private:
    std::uint32_t state = 1;
    float next() {
        state = state * 1664525u + 1013904223u;
        return static_cast<float>(static_cast<int>(state >> 25) - 64) / 32.0f;
    }
    static std::int64_t tokens(const std::vector<Segment>& segments) {
        std::int64_t out = 0;
        for (const Segment& s : segments) out += s.tokens;
        return out;
    }
    double dot(const double* a, const double* b) const {
        double sum = 0;
        for (std::int64_t i = 0; i < width; ++i) sum += a[i] * b[i];
        return sum;
    }
    void exact_row(std::size_t s, std::int32_t t, std::int64_t head, Exact& x) const {
        const auto w = static_cast<std::size_t>(width);
        const auto at = static_cast<std::size_t>((t * query_heads + head) * width);
        std::vector<std::size_t> keys;
        const auto see = [&](std::int32_t begin, std::int32_t end) {
            const std::int64_t kv = head * kv_heads / query_heads;
            for (; begin < end; ++begin) {
                keys.push_back(static_cast<std::size_t>((begin * kv_heads + kv) * width));
            }
        };
        if (parent[s] >= 0) {
            const auto p = static_cast<std::size_t>(parent[s]);
            see(offsets[p], offsets[p + 1]);
        }
        see(offsets[s], t + 1);
        std::vector<double> weight, slope;
        double total = 0, delta = 0;
        for (const std::size_t key : keys) {
            weight.push_back(std::exp(0.25 * dot(&x.q[at], &x.k[key])));
            slope.push_back(dot(&x.grad[at], &x.v[key]));
            total += weight.back();
        }
        for (std::size_t j = 0; j < keys.size(); ++j) delta += (weight[j] /= total) * slope[j];
        for (std::size_t j = 0; j < keys.size(); ++j) {
            const double p = weight[j], ds = 0.25 * p * (slope[j] - delta);
            const std::size_t key = keys[j];
            for (std::size_t i = 0; i < w; ++i) {
                x.out[at + i] += p * x.v[key + i];
                x.grad_q[at + i] += ds * x.k[key + i];
                x.grad_k[key + i] += ds * x.q[at + i];
                x.grad_v[key + i] += p * x.grad[at + i];
            }
        }
    }
};

const std::vector<Segment> kMixed{{100, -1}, {30, 0},  {1, 0},  {33, -1}, {67, 0},
                                  {0, 0},    {66, -1}, {1, -1}, {5, 3},   {20, 3}};

void test_every_level(const std::vector<std::int64_t>& widths) {
    const Level best = level();
    for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
        const double limit = type == DType::kFloat32 ? 2e-5 : 2e-2;
        for (const std::int64_t width : widths) {
            Batch batch(type, width == 40 ? 8 : 6, width == 40 ? 1 : 2, width, kMixed);
            const Exact exact = batch.exact();
            for (int i = 0; i <= static_cast<int>(best); ++i) {
                CHECK(set_level(static_cast<Level>(i)), "");
                const std::string which = std::string(kLevelNames[i]) + ", width " + std::to_string(width);
                batch.run();
                CHECK(batch.out.error(exact.out) < limit, which);
                CHECK(batch.grad_q.error(exact.grad_q) < limit, which);
                CHECK(batch.grad_k.error(exact.grad_k) < limit, which);
                CHECK(batch.grad_v.error(exact.grad_v) < limit, which);
            }
        }
    }
    CHECK(set_level(best), "");
}

// A parent's gradients come from several units of work, on several threads.
void test_threads_change_nothing() {
    std::vector<Segment> segments = kMixed;
    segments.push_back({200, -1});
    for (int i = 0; i < 8; ++i) segments.push_back({60 + i, 10});
    for (const DType type : {DType::kFloat32, DType::kBFloat16}) {
        Batch alone(type, 3, 1, 64, segments), together(type, 3, 1, 64, segments);
        alone.run();
        set_thread_runner(&threads, 4);
        together.run();
        set_thread_runner(nullptr, 1);
        CHECK(alone.results() == together.results(), "");
    }
    set_thread_runner(&threads, 4);
    test_every_level({40});
    set_thread_runner(nullptr, 1);
}

void test_nothing_to_do() {
    Batch none(DType::kFloat32, 2, 1, 8, {}), empty(DType::kBFloat16, 2, 1, 8, {{0, -1}, {0, 0}});
    none.run();
    empty.run();
}

}  // namespace

int main() {
    test_nothing_to_do();
    test_every_level({8, 64});
    test_threads_change_nothing();
    return failures == 0 ? 0 : 1;
}
