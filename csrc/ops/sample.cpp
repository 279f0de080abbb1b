#include "sftrl/ops/sample.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <limits>

#include "narrow.h"
#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int kBlock = static_cast<int>(kSampleBlock), kVectors = kBlock / kLanes;

constexpr float kLog2E = 1.44269504f;

// 2^x for x <= 0 or NaN, to about one unit in the last place of float; 2^0 is 1 exactly.
// With n the whole number below x: 2^(x - n) by the polynomial of least relative error on [0, 1] (8e-8),
// times 2^n.
SFTRL_INLINE f32x16 exp2_below(f32x16 x) {
#if defined(__AVX512F__)
    const __m512 v = reinterpret_cast<__m512>(x);
    const __m512 fraction = _mm512_reduce_ps(v, 9);  // x - floor(x); 0 for -inf
    __m512 p = _mm512_set1_ps(0.00186713f);
    for (const float c : {0.009017031f, 0.055799913f, 0.24016444f, 0.6931513f, 1.0f}) {
        p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(c));
    }
    return reinterpret_cast<f32x16>(_mm512_scalef_ps(p, v));  // times 2^floor(x)
#else
    const f32x16 v = x < -150.0f ? splat(-150.0f) : x;
    const i32x16 up = __builtin_convertvector(v, i32x16);
    const i32x16 whole = up + (__builtin_convertvector(up, f32x16) > v);
    const f32x16 fraction = v - __builtin_convertvector(whole, f32x16);
    f32x16 p = splat(0.00186713f);
    for (const float c : {0.009017031f, 0.055799913f, 0.24016444f, 0.6931513f, 1.0f}) p = p * fraction + c;
    // 2^n in two factors: n reaches -150, whose power of two is no normal float.
    const i32x16 half = whole >> 1;
    return p * reinterpret_cast<f32x16>((half + 127) << 23) *
           reinterpret_cast<f32x16>((whole - half + 127) << 23);
#endif
}

// One row. A cell is the sixteen logits of a block that share a lane; what one pass over the logits leaves of
// it is its maximum and the sums of its weights against that maximum.
template <class T>
class Row {
  public:
    Row(const T* logits, std::int64_t vocab, float* scratch)
        : logits_(logits), vocab_(vocab), blocks_((vocab + kBlock - 1) / kBlock) {
        const std::int64_t cells = blocks_ * kLanes;
        mass_ = reinterpret_cast<double*>(scratch);
        tops_ = scratch + 2 * blocks_;
        sums_ = tops_ + cells;
        plain_sums_ = sums_ + cells;
        heads_ = plain_sums_ + cells;
        candidates_ = heads_ + cells;
        work_ = candidates_ + blocks_ * kBlock + 32;
        starts_ = reinterpret_cast<std::int32_t*>(work_ + blocks_ * kBlock + 32);
    }

    void draw(float uniform, float temperature, std::int64_t top_k, float top_p, std::int64_t& token,
              float& plain, float& sampled) {
        const bool greedy = temperature == 0.0f;
        const bool twice = !greedy && temperature != 1.0f;
        scale_ = greedy ? kLog2E : std::clamp(1.0f / temperature, FLT_MIN, FLT_MAX / 2) * kLog2E;
        twice ? read<true>() : read<false>();
        const double plain_total = total(twice ? plain_sums_ : sums_, kLog2E);
        if (!(plain_total > 0.0)) {  // NaN and +inf made it NaN, nothing but -inf 0
            token = 0;
            plain = sampled = kNaN;
            return;
        }
        const bool few = top_k > 0 && top_k < vocab_;
        double sampled_total = plain_total;
        if (greedy) {
            token = first_largest();
        } else if (few || top_p < 1.0f) {
            const double whole = twice ? total(sums_, scale_) : plain_total;
            token = filtered(uniform, few ? top_k : 0, top_p, whole, sampled_total);
        } else {
            if (twice) sampled_total = total(sums_, scale_);
            token = unfiltered(uniform, sampled_total);
        }
        const float z = to_float(logits_[token]) - top_;
        plain = z - static_cast<float>(std::log(plain_total));
        sampled = greedy ? 0.0f : z / temperature - static_cast<float>(std::log(sampled_total));
    }

  private:
    int size(std::int64_t block) const {
        return static_cast<int>(std::min<std::int64_t>(kBlock, vocab_ - block * kBlock));
    }

    // Sixteen logits from `at` on, -inf beyond the end.
    SFTRL_INLINE f32x16 logits(std::int64_t at) const {
        return at + kLanes <= vocab_ ? load(logits_ + at)
                                     : load_first(logits_ + at, static_cast<int>(vocab_ - at), -kInf);
    }

    SFTRL_INLINE f32x16 weights(std::int64_t at) const { return exp2_below((logits(at) - top_) * scale_); }

    // Fills tops_ and sums_, and with kTwice plain_sums_; finds top_.
    template <bool kTwice>
    void read() {
        f32x16 highest = splat(-kInf);
        for (std::int64_t b = 0; b < blocks_; ++b) {
            const f32x16 top = size(b) == kBlock ? read_block<kTwice, true>(b) : read_block<kTwice, false>(b);
            highest = max(highest, top);
        }
        top_ = reduce_max(highest);
    }

    template <bool kTwice, bool kWhole>
    SFTRL_INLINE f32x16 read_block(std::int64_t b) {
        const int vectors = kWhole ? kVectors : (size(b) + kLanes - 1) / kLanes;
        const auto at = [&](int v) {
            return kWhole ? load(logits_ + b * kBlock + v * kLanes) : logits(b * kBlock + v * kLanes);
        };
        f32x16 top = at(0);
        for (int v = 1; v < vectors; ++v) top = max(top, at(v));
        // Where all is -inf, the difference to the reference must be -inf too, not NaN.
        const f32x16 reference = max(splat(-FLT_MAX), top);
        f32x16 sum = splat(0.0f), plain_sum = splat(0.0f);
        for (int v = 0; v < vectors; ++v) {
            const f32x16 below = at(v) - reference;
            sum += exp2_below(below * scale_);
            if constexpr (kTwice) plain_sum += exp2_below(below * kLog2E);
        }
        store(top, tops_ + b * kLanes);
        store(sum, sums_ + b * kLanes);
        if constexpr (kTwice) store(plain_sum, plain_sums_ + b * kLanes);
        return top;
    }

    // Sum of a row's weights, and mass_ of each block.
    double total(const float* sums, float scale) {
        if (top_ == -kInf) return 0.0;
        double sum = 0.0;
        for (std::int64_t b = 0; b < blocks_; ++b) {
            const f32x16 below = load(tops_ + b * kLanes) - top_;
            mass_[b] = static_cast<double>(reduce_add(load(sums + b * kLanes) * exp2_below(below * scale)));
            sum += mass_[b];
        }
        return sum;
    }

    std::int64_t first_largest() const {
        std::int64_t b = 0;
        while (reduce_max(load(tops_ + b * kLanes)) != top_) ++b;
        std::int64_t at = b * kBlock;
        while (to_float(logits_[at]) != top_) ++at;
        return at;
    }

    // The part whose running sum first exceeds `target`, or where rounding leaves none the last that is not
    // empty. `before` receives the sum of those ahead of it.
    static std::int64_t find(const double* mass, std::int64_t count, float target, double& before) {
        std::int64_t found = 0;
        double running = 0.0;
        for (std::int64_t i = 0; i < count; ++i) {
            if (!(mass[i] > 0.0)) continue;
            found = i;
            before = running;
            running += mass[i];
            if (static_cast<float>(running) > target) break;
        }
        return found;
    }

    // The same over weights of `least` and more.
    static int find(const float* weights, int count, float least, float target, double before) {
        int found = 0;
        for (int i = 0; i < count; ++i) {
            if (!(weights[i] >= least) || weights[i] == 0.0f) continue;
            found = i;
            before += static_cast<double>(weights[i]);
            if (static_cast<float>(before) > target) break;
        }
        return found;
    }

    std::int64_t unfiltered(float uniform, double whole) {
        const float target = uniform * static_cast<float>(whole);
        double before = 0.0;
        const std::int64_t b = find(mass_, blocks_, target, before);
        alignas(64) float block[kBlock];
        for (int i = 0; i < size(b); i += kLanes) store(weights(b * kBlock + i), block + i);
        return b * kBlock + find(block, size(b), 0.0f, target, before);
    }

    std::int64_t filtered(float uniform, std::int64_t top_k, float top_p, double whole, double& kept) {
        const float low = bound(top_k, top_p, whole);
        const std::int64_t count = collect(low);
        float least = low;
        if (top_k) {
            least = narrow<true>(candidates_, work_, count, low, static_cast<double>(top_k));
            whole = sum_of_candidates(count, least);
        }
        if (top_p < 1.0f) least = narrow<false>(candidates_, work_, count, least, needed(top_p, whole));
        kept = sum_of_candidates(count, least);
        const float target = uniform * static_cast<float>(kept);
        double before = 0.0;
        const std::int64_t chunk = find(mass_, (count + kBlock - 1) / kBlock, target, before) * kBlock;
        const int rest = static_cast<int>(std::min<std::int64_t>(kBlock, count - chunk));
        return token_of(chunk + find(candidates_ + chunk, rest, least, target, before), low);
    }

    static double needed(float top_p, double whole) {
        return static_cast<double>(top_p * static_cast<float>(whole));
    }

    // A weight that is not above the least one kept: found among the maxima of cells, which are weights of
    // the row themselves. Also fills heads_ with them.
    float bound(std::int64_t top_k, float top_p, double whole) {
        const std::int64_t cells = blocks_ * kLanes;
        double sum = 0.0;
        for (std::int64_t i = 0; i < cells; i += kLanes) {
            const f32x16 head = exp2_below((load(tops_ + i) - top_) * scale_);
            store(head, heads_ + i);
            sum += static_cast<double>(reduce_add(head));
        }
        std::copy_n(heads_, cells, candidates_);
        store(splat(0.0f), candidates_ + cells);
        if (top_k) {
            if (top_k > cells) return kLeastWeight;
            return narrow<true>(candidates_, work_, cells, kLeastWeight, static_cast<double>(top_k));
        }
        // All weights below (1 - p) total / V together are less than what top-p drops; half of it is beyond
        // rounding.
        const double spare = (1.0 - static_cast<double>(top_p)) * whole / static_cast<double>(vocab_);
        const float low = std::max(kLeastWeight, static_cast<float>(spare * 0.5));
        const double need = needed(top_p, whole) * (1.0 + 1e-5);
        return sum < need ? low : std::max(low, narrow<false>(candidates_, work_, cells, low, need));
    }

    // Moves the weights from `low` on together, in the order of tokens; starts_ has the number before each
    // block.
    std::int64_t collect(float low) {
        std::int64_t count = 0;
        for (std::int64_t b = 0; b < blocks_; ++b) {
            starts_[b] = static_cast<std::int32_t>(count);
            if (!(reduce_max(load(heads_ + b * kLanes)) >= low)) continue;
            for (int i = 0; i < size(b); i += kLanes) {
                count += append_between(weights(b * kBlock + i), low, kInf, candidates_ + count);
            }
        }
        store(splat(0.0f), candidates_ + count);
        return count;
    }

    // Sum of the candidates from `least` on, and mass_ of each kBlock of them.
    double sum_of_candidates(std::int64_t count, float least) {
        double sum = 0.0;
        for (std::int64_t begin = 0; begin < count; begin += kBlock) {
            const std::int64_t end = std::min(begin + kBlock, count);
            f32x16 part = splat(0.0f);
            for (std::int64_t i = begin; i < end; i += kLanes) {
                const f32x16 weight = load(candidates_ + i);
                part += weight >= least ? weight : splat(0.0f);
            }
            mass_[begin / kBlock] = static_cast<double>(reduce_add(part));
            sum += mass_[begin / kBlock];
        }
        return sum;
    }

    std::int64_t token_of(std::int64_t candidate, float low) const {
        const std::int64_t b = std::upper_bound(starts_, starts_ + blocks_, candidate) - starts_ - 1;
        std::int64_t ahead = candidate - starts_[b];
        alignas(64) float block[kBlock];
        for (int i = 0; i < size(b); i += kLanes) store(weights(b * kBlock + i), block + i);
        int i = 0;
        for (; i < size(b) - 1; ++i) {
            if (block[i] >= low && ahead-- == 0) break;
        }
        return b * kBlock + i;
    }

    const T* logits_;
    std::int64_t vocab_, blocks_;
    double* mass_;
    float *tops_, *sums_, *plain_sums_, *heads_, *candidates_, *work_;
    std::int32_t* starts_;
    float top_ = 0.0f, scale_ = kLog2E;  // the row's largest logit; log2(e) / temperature
};

template <class T>
void run(const SampleArgs& a) {
    std::atomic<std::int64_t> next{0};
    parallel_for(std::min(a.slots, a.rows), 1, [&](std::int64_t slot, std::int64_t) {
        float* const scratch = a.scratch + slot * sample_scratch(a.vocab);
        for (std::int64_t r; (r = next.fetch_add(1, std::memory_order_relaxed)) < a.rows;) {
            Row<T> row(static_cast<const T*>(a.logits) + r * a.stride, a.vocab, scratch);
            row.draw(a.uniforms[r], a.temperature[r], a.top_k[r], a.top_p[r], a.tokens[r], a.plain[r],
                     a.sampled[r]);
        }
    });
}

}  // namespace

void sample(const SampleArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
