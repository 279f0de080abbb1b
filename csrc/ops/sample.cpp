#include "sftrl/ops/sample.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "narrow.h"
#include "sftrl/parallel.h"
#include "simd.h"

namespace sftrl::SFTRL_LEVEL {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr int kBlock = static_cast<int>(kSampleBlock), kVectors = kBlock / kLanes;

constexpr int kRounds = 2;  // each cuts the estimated range to an eighth, as far as the sample tells

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
    const f32x16 v = select(x < -150.0f, splat(-150.0f), x);
    const i32x16 up = convert<i32x16>(v);
    const i32x16 whole = up + (convert<f32x16>(up) > v);
    const f32x16 fraction = v - convert<f32x16>(whole);
    f32x16 p = splat(0.00186713f);
    for (const float c : {0.009017031f, 0.055799913f, 0.24016444f, 0.6931513f, 1.0f}) p = p * fraction + c;
    // 2^n in two factors: n reaches -150, whose power of two is no normal float.
    const i32x16 half = whole >> 1;
    return p * as<f32x16>((half + 127) << 23) * as<f32x16>((whole - half + 127) << 23);
#endif
}

// Thirty-two logits in any order: they are summed.
SFTRL_INLINE void load_pair(const float* from, f32x16& a, f32x16& b) {
    a = load(from);
    b = load(from + kLanes);
}
SFTRL_INLINE void load_pair(const bf16* from, f32x16& a, f32x16& b) {
    const u32x16 both = load_lanes<u32x16>(from);
    a = as<f32x16>(both << 16);
    b = as<f32x16>(both & 0xFFFF0000u);
}

// One row. The pass over the logits leaves of each cell, the sixteen logits of a block that share a lane, the
// maximum and the sum of the weights against it. A weight is e^((logit - top) / temperature).
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
        work_ = candidates_ + blocks_ * kBlock + kLanes;
        above_ = work_ + blocks_ * kBlock + kLanes;
        starts_ = reinterpret_cast<std::int32_t*>(above_ + blocks_);
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
        double sampled_total = plain_total;
        if (greedy) {
            token = first_largest();
        } else {
            const bool few = top_k > 0 && top_k < vocab_;
            float least = 0.0f;
            if (twice) sampled_total = total(sums_, scale_);
            if (few || top_p < 1.0f) {
                least = threshold(few ? top_k : 0, top_p, sampled_total);
                sampled_total = keep(least);
            }
            token = pick(uniform * static_cast<float>(sampled_total), least);
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

    SFTRL_INLINE f32x16 exponents(std::int64_t at) const { return (logits(at) - top_) * scale_; }

    // Fills tops_ and sums_, and with kTwice plain_sums_; finds top_.
    template <bool kTwice>
    void read() {
        f32x16 highest = splat(-kInf);
        for (std::int64_t b = 0; b < blocks_; ++b) {
            highest =
                max(highest, size(b) == kBlock ? read_block<kTwice, true>(b) : read_block<kTwice, false>(b));
        }
        top_ = reduce_max(highest);
    }

    template <bool kTwice, bool kWhole>
    SFTRL_INLINE f32x16 read_block(std::int64_t b) {
        const int pairs = kWhole ? kVectors / 2 : (size(b) + 2 * kLanes - 1) / (2 * kLanes);
        const auto read_pair = [&](int i, f32x16& x, f32x16& y) {
            const std::int64_t at = b * kBlock + i * 2 * kLanes;
            if constexpr (kWhole) {
                load_pair(logits_ + at, x, y);
            } else {
                x = logits(at);
                y = at + kLanes < vocab_ ? logits(at + kLanes) : splat(-kInf);
            }
        };
        f32x16 x, y, top_x = splat(-kInf), top_y = splat(-kInf);
        for (int i = 0; i < pairs; ++i) {
            read_pair(i, x, y);
            top_x = max(top_x, x);
            top_y = max(top_y, y);
        }
        const f32x16 top = max(top_x, top_y);
        // Where all is -inf, the difference to the reference must be -inf too, not NaN.
        const f32x16 reference = max(splat(-FLT_MAX), top);
        f32x16 sum = splat(0.0f), plain_sum = splat(0.0f);
        for (int i = 0; i < pairs; ++i) {
            read_pair(i, x, y);
            x -= reference;
            y -= reference;
            sum += exp2_below(x * scale_) + exp2_below(y * scale_);
            if constexpr (kTwice) plain_sum += exp2_below(x * kLog2E) + exp2_below(y * kLog2E);
        }
        store(top, tops_ + b * kLanes);
        store(sum, sums_ + b * kLanes);
        if constexpr (kTwice) store(plain_sum, plain_sums_ + b * kLanes);
        return top;
    }

    // Sum of the row's weights, those of each block in mass_, and the largest of each cell in heads_.
    double total(const float* sums, float scale) {
        if (top_ == -kInf) return 0.0;
        double sum = 0.0;
        for (std::int64_t b = 0; b < blocks_; ++b) {
            const f32x16 head = exp2_below((load(tops_ + b * kLanes) - top_) * scale);
            store(head, heads_ + b * kLanes);
            mass_[b] = static_cast<double>(reduce_add(load(sums + b * kLanes) * head));
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

    // The first token whose running sum of the weights from `least` on exceeds `target`, or where rounding
    // leaves none the last of them in its block. mass_ has the sums of these weights.
    std::int64_t pick(float target, float least) const {
        std::int64_t found = 0;
        double before = 0.0, running = 0.0;
        for (std::int64_t b = 0; b < blocks_ && !(static_cast<float>(running) > target); ++b) {
            if (!(mass_[b] > 0.0)) continue;
            found = b;
            before = running;
            running += mass_[b];
        }
        alignas(64) float weights[kBlock];
        const int count = size(found);
        for (int i = 0; i < count; i += kLanes) store(exp2_below(exponents(found * kBlock + i)), weights + i);
        int token = 0;
        for (int i = 0; i < count && !(static_cast<float>(before) > target); ++i) {
            if (!(weights[i] >= least) || weights[i] == 0.0f) continue;
            token = i;
            before += static_cast<double>(weights[i]);
        }
        return found * kBlock + token;
    }

    // The least weight that the filters keep, in a row of weights that add up to `whole`.
    float threshold(std::int64_t top_k, float top_p, double whole) {
        const auto needed = [&] { return static_cast<double>(top_p * static_cast<float>(whole)); };
        if (top_k) {
            // The maxima of cells are weights of the row: the threshold is no less than the k-th largest of
            // them.
            const double need = static_cast<double>(top_k);
            const float low =
                narrow<true>(heads_, work_, blocks_ * kLanes, {kLeastWeight, kBeyondWeights, 0.0}, need);
            Range range = {low, kBeyondWeights, 0.0};
            collect(range);
            const float least = narrow<true>(candidates_, work_, count_, range, need);
            if (!(top_p < 1.0f)) return least;
            whole = keep(least);
            return narrow<false>(candidates_, work_, count_, {least, kBeyondWeights, 0.0}, needed());
        }
        Range range = estimate(top_p, whole);
        const double inside = collect(range);
        if (!(range.above < needed() && range.above + inside >= needed())) {
            range = {least_possible(top_p, whole), kBeyondWeights, 0.0};
            collect(range);
        }
        return narrow<false>(candidates_, work_, count_, range, needed());
    }

    // All weights below (1 - p) whole / V together are less than what top-p drops; half of it is beyond
    // rounding.
    float least_possible(float top_p, double whole) const {
        const double spare = (1.0 - static_cast<double>(top_p)) * whole / static_cast<double>(vocab_);
        return std::max(kLeastWeight, static_cast<float>(spare * 0.5));
    }

    // A range that most likely holds the threshold of top-p: from the maxima of all cells, and one logit of
    // each cell that stands for all its logits but the largest.
    Range estimate(float top_p, double whole) {
        const std::int64_t cells = blocks_ * kLanes;
        double head_sum = 0.0, sample_sum = 0.0;
        for (std::int64_t b = 0; b < blocks_; ++b) {
            const std::int64_t at = b * kBlock + b % ((size(b) + kLanes - 1) / kLanes) * kLanes;
            const f32x16 weight = exp2_below(exponents(at)), head = load(heads_ + b * kLanes);
            const f32x16 other = select(weight < head, weight, splat(0.0f));
            store(other, work_ + b * kLanes);
            head_sum += static_cast<double>(reduce_add(head));
            sample_sum += static_cast<double>(reduce_add(other));
        }
        const double need = static_cast<double>(top_p) * whole;
        Range range = {least_possible(top_p, whole), kBeyondWeights, 0.0};
        for (int round = 0; round < kRounds; ++round) {
            float probe[kProbes];
            double heads[kProbes] = {}, sampled[kProbes] = {};
            place_probes(range.low, range.high, probe);
            add_masses<false>(heads_, cells, probe, heads);
            add_masses<false>(work_, cells, probe, sampled);
            for (int j = 0; j < kProbes; ++j) {
                // What is below is small and so better guessed than what is above.
                const double below = std::max(0.0, sample_sum - sampled[j]);
                const double mass = whole - (head_sum - heads[j]) - kVectors * below;
                // Three standard deviations, if each weight below is kept with probability 1 / kVectors.
                const double margin =
                    3.0 * std::sqrt(kVectors * (kVectors - 1) * static_cast<double>(probe[j]) * below);
                if (mass - margin >= need) range.low = std::max(range.low, probe[j]);
                if (mass + margin < need) range.high = std::min(range.high, probe[j]);
            }
        }
        return range;
    }

    // Moves the weights within the range together, in the order of tokens: starts_ has the place of each
    // block's first among the candidates_. above_ receives the sum of each block's weights beyond the range,
    // range.above that of all. Returns the sum of what is within.
    double collect(Range& range) {
        gather_exponents(range.low);
        double inside = 0.0;
        range.above = 0.0;
        count_ = 0;
        for (std::int64_t b = 0, i = 0; b < blocks_; ++b) {
            const std::int64_t end = starts_[b];
            starts_[b] = static_cast<std::int32_t>(count_);
            f32x16 within = splat(0.0f), beyond = splat(0.0f);
            for (std::int64_t j = i; j < end; j += kLanes) {
                const f32x16 weight = exp2_below(load(work_ + j));
                within = add_from(range.low, weight, within, weight);
                beyond = add_from(range.high, weight, beyond, weight);
                store(weight, work_ + j);
            }
            // Apart from the exponentials: a load may have to wait until the place of the store before it is
            // known.
            for (; i < end; i += kLanes) {
                count_ += append_between(load(work_ + i), range.low, range.high, candidates_ + count_);
            }
            count_ = fill_up(candidates_, count_, 0.0f);
            above_[b] = reduce_add(beyond);
            range.above += static_cast<double>(above_[b]);
            inside += static_cast<double>(reduce_add(within) - above_[b]);
        }
        return inside;
    }

    // Moves the exponents of all weights from `low` on (give or take a rounding) together in work_, -inf
    // between blocks; starts_ has the end of each block. The exponentials come after all of them: a load
    // right behind the overlapping stores of such a move waits for them.
    void gather_exponents(float low) {
        const float hopeful = std::log2(low) - 0.01f;
        std::int64_t count = 0;
        for (std::int64_t b = 0; b < blocks_; ++b) {
            if (any_at_least(load(heads_ + b * kLanes), low)) {
                for (int i = 0; i < size(b); i += kLanes) {
                    count += append_between(exponents(b * kBlock + i), hopeful, kInf, work_ + count);
                }
                count = fill_up(work_, count, -kInf);
            }
            starts_[b] = static_cast<std::int32_t>(count);
        }
    }

    // Sum of the weights from `least` on, with mass_ of each block, out of what collect has left.
    double keep(float least) {
        double sum = 0.0;
        for (std::int64_t b = 0; b < blocks_; ++b) {
            const std::int64_t end = b + 1 < blocks_ ? starts_[b + 1] : count_;
            f32x16 part = splat(0.0f);
            for (std::int64_t i = starts_[b]; i < end; i += kLanes) {
                const f32x16 weight = load(candidates_ + i);
                part = add_from(least, weight, part, weight);
            }
            mass_[b] = static_cast<double>(above_[b] + reduce_add(part));
            sum += mass_[b];
        }
        return sum;
    }

    const T* logits_;
    std::int64_t vocab_, blocks_, count_ = 0;  // count_: of the candidates
    double* mass_;
    float *tops_, *sums_, *plain_sums_, *heads_, *candidates_, *work_, *above_;
    std::int32_t* starts_;
    float top_ = 0.0f, scale_ = kLog2E;  // the row's largest logit; log2(e) / temperature
};

template <class T>
void run(const SampleArgs& a) {
    parallel_slots(a.rows, a.slots, [&](int slot, std::int64_t r) {
        Row<T> row(static_cast<const T*>(a.logits) + r * a.stride, a.vocab,
                   a.scratch + slot * sample_scratch(a.vocab));
        row.draw(a.uniforms[r], a.temperature[r], a.top_k[r], a.top_p[r], a.tokens[r], a.plain[r],
                 a.sampled[r]);
    });
}

}  // namespace

void sample(const SampleArgs& args) noexcept {
    args.dtype == DType::kFloat32 ? run<float>(args) : run<bf16>(args);
}

}  // namespace sftrl::SFTRL_LEVEL
