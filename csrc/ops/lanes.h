// Sixteen lanes of 32 bits: a vector type where a register holds it, elsewhere an array of the level's own
// vectors with the operators of one. Of a vector type wider than a register GCC 12 makes memory, and copies
// it from operation to operation: attention took five times as long.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if !defined(SFTRL_LEVEL)
#error "lanes.h belongs to sources that are compiled once a level"
#endif

#define SFTRL_INLINE inline __attribute__((always_inline))

namespace sftrl::SFTRL_LEVEL {

inline constexpr int kLanes = 16;

template <class V>
SFTRL_INLINE V load_as(const void* from) {
    V out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

#if defined(__AVX512F__)

typedef float f32x16 __attribute__((vector_size(64)));
typedef std::int32_t i32x16 __attribute__((vector_size(64)));
typedef std::uint32_t u32x16 __attribute__((vector_size(64)));

template <class V>
SFTRL_INLINE V load_lanes(const void* from) {
    return load_as<V>(from);
}
template <class V>
SFTRL_INLINE void store_lanes(V value, void* to) {
    std::memcpy(to, &value, sizeof value);
}

// The same bits.
template <class To, class From>
SFTRL_INLINE To as(From from) {
    return reinterpret_cast<To>(from);
}

template <class To, class From>
SFTRL_INLINE To convert(From from) {
    return __builtin_convertvector(from, To);
}

SFTRL_INLINE u32x16 load_halves(const std::uint16_t* from) {
    // One instruction; of __builtin_convertvector GCC 12 makes two halves and puts them together.
    return reinterpret_cast<u32x16>(_mm512_cvtepu16_epi32(load_lanes<__m256i>(from)));
}
SFTRL_INLINE void store_halves(u32x16 value, std::uint16_t* to) {
    typedef std::uint16_t u16x16 __attribute__((vector_size(32)));
    store_lanes(__builtin_convertvector(value, u16x16), to);
}

template <class V>
SFTRL_INLINE V select(i32x16 mask, V a, V b) {
    return mask ? a : b;
}

#else

template <class T>
struct Lanes {
#if defined(__AVX2__)
    static constexpr int kBytes = 32;
#else
    static constexpr int kBytes = 16;
#endif
    static constexpr int kPer = kBytes / 4, kParts = kLanes / kPer;
    typedef T Part __attribute__((vector_size(kBytes)));
    typedef std::uint16_t Half __attribute__((vector_size(kBytes / 2)));
    using Mask = Lanes<std::int32_t>;  // of a comparison: all bits or none

    Part part[kParts];

    Lanes() = default;
    SFTRL_INLINE Lanes(T value) {
        for (Part& p : part) p = value - Part{};
    }
    SFTRL_INLINE T operator[](int lane) const { return part[lane / kPer][lane % kPer]; }

#define SFTRL_LANES(RESULT, OP)                                                \
    friend SFTRL_INLINE RESULT operator OP(Lanes a, Lanes b) {                 \
        RESULT out;                                                            \
        for (int i = 0; i < kParts; ++i) out.part[i] = a.part[i] OP b.part[i]; \
        return out;                                                            \
    }
    SFTRL_LANES(Lanes, +)
    SFTRL_LANES(Lanes, -)
    SFTRL_LANES(Lanes, *)
    SFTRL_LANES(Lanes, /)
    SFTRL_LANES(Lanes, &)
    SFTRL_LANES(Lanes, |)
    SFTRL_LANES(Mask, <)
    SFTRL_LANES(Mask, >)
    SFTRL_LANES(Mask, >=)
    SFTRL_LANES(Mask, !=)
#undef SFTRL_LANES
    friend SFTRL_INLINE Lanes operator<<(Lanes a, int bits) {
        for (Part& p : a.part) p = p << bits;
        return a;
    }
    friend SFTRL_INLINE Lanes operator>>(Lanes a, int bits) {
        for (Part& p : a.part) p = p >> bits;
        return a;
    }
    SFTRL_INLINE Lanes operator-() const {
        Lanes out;
        for (int i = 0; i < kParts; ++i) out.part[i] = -part[i];
        return out;
    }
    SFTRL_INLINE Lanes& operator+=(Lanes b) { return *this = *this + b; }
    SFTRL_INLINE Lanes& operator-=(Lanes b) { return *this = *this - b; }
};

using f32x16 = Lanes<float>;
using i32x16 = Lanes<std::int32_t>;
using u32x16 = Lanes<std::uint32_t>;

template <class V>
SFTRL_INLINE V load_lanes(const void* from) {
    V out;
    for (int i = 0; i < V::kParts; ++i) {
        out.part[i] = load_as<typename V::Part>(static_cast<const char*>(from) + i * V::kBytes);
    }
    return out;
}
template <class T>
SFTRL_INLINE void store_lanes(Lanes<T> value, void* to) {
    for (int i = 0; i < value.kParts; ++i) {
        std::memcpy(static_cast<char*>(to) + i * value.kBytes, &value.part[i], value.kBytes);
    }
}

template <class To, class From>
SFTRL_INLINE To as(From from) {
    To out;
    for (int i = 0; i < To::kParts; ++i) out.part[i] = reinterpret_cast<typename To::Part>(from.part[i]);
    return out;
}

template <class To, class From>
SFTRL_INLINE To convert(From from) {
    To out;
    for (int i = 0; i < To::kParts; ++i) {
        out.part[i] = __builtin_convertvector(from.part[i], typename To::Part);
    }
    return out;
}

SFTRL_INLINE u32x16 load_halves(const std::uint16_t* from) {
    u32x16 out;
    for (int i = 0; i < out.kParts; ++i) {
        out.part[i] = __builtin_convertvector(load_as<u32x16::Half>(from + i * out.kPer), u32x16::Part);
    }
    return out;
}
SFTRL_INLINE void store_halves(u32x16 value, std::uint16_t* to) {
    for (int i = 0; i < value.kParts; ++i) {
        const auto half = __builtin_convertvector(value.part[i], u32x16::Half);
        std::memcpy(to + i * value.kPer, &half, sizeof half);
    }
}

template <class T>
SFTRL_INLINE Lanes<T> select(i32x16 mask, Lanes<T> a, Lanes<T> b) {
    for (int i = 0; i < a.kParts; ++i) a.part[i] = mask.part[i] ? a.part[i] : b.part[i];
    return a;
}

#endif

// Of vectors of `Count` lanes: lanes with Bit in their number change places with lanes without it of the row
// whose number has it.
template <int Bit, int Count, class V, int... Lane>
SFTRL_INLINE void exchange(V& a, V& b, std::integer_sequence<int, Lane...>) {
    const V low = __builtin_shufflevector(a, b, (Lane & Bit ? Count + Lane - Bit : Lane)...);
    b = __builtin_shufflevector(a, b, (Lane & Bit ? Count + Lane : Lane + Bit)...);
    a = low;
}
// Row i's lane j becomes row j's lane i.
template <int Count, class V, int Bit = 1>
SFTRL_INLINE void transpose_block(V (&rows)[Count]) {
#pragma GCC unroll 16
    for (int i = 0; i < Count; ++i) {
        if (!(i & Bit))
            exchange<Bit, Count>(rows[i], rows[i + Bit], std::make_integer_sequence<int, Count>{});
    }
    if constexpr (2 * Bit < Count) transpose_block<Count, V, 2 * Bit>(rows);
}

#if defined(__AVX512F__)

template <class V>
SFTRL_INLINE void transpose(V (&rows)[kLanes]) {
    transpose_block(rows);
}

#else

// In squares that registers hold.
template <class T>
SFTRL_INLINE void transpose(Lanes<T> (&rows)[kLanes]) {
    constexpr int per = Lanes<T>::kPer, parts = Lanes<T>::kParts;
    const auto turned = [&](int row, int part, auto& square) {
        for (int i = 0; i < per; ++i) square[i] = rows[row * per + i].part[part];
        transpose_block(square);
    };
    for (int row = 0; row < parts; ++row) {
        for (int part = 0; part <= row; ++part) {
            typename Lanes<T>::Part below[per], above[per];
            turned(row, part, below);
            if (part < row) turned(part, row, above);
            for (int i = 0; i < per; ++i) {
                rows[part * per + i].part[row] = below[i];
                if (part < row) rows[row * per + i].part[part] = above[i];
            }
        }
    }
}

#endif

}  // namespace sftrl::SFTRL_LEVEL
