// Attention's sums in the matrix registers of AMX. Always sixteen rows: those past the last are computed from
// whatever lies there, in memory that is theirs, and nobody reads them.
#pragma once

#if defined(__AMX_BF16__)

#include "amx.h"
#include "cached_attention_block.h"

namespace sftrl::SFTRL_LEVEL::cached {

struct MatrixTiles {
    static constexpr int kRows = tmul::kBlock, kVectors = 4;
    static constexpr bool kTurned = true;
    using Scope = tmul::Shaped;

    // Whether no unit of a row is missing in its last tile.
    static bool covers(int width) { return width % tmul::kStep == 0; }

    static void scores(const ScoreTile<Pairs>& tile, int rows, int vectors) {
        with_constant<kVectors>(vectors, [&](auto V) {
            tmul::in_memory();
            tmul::zero<V>();
            const std::int64_t pitch = tile.units * static_cast<std::int64_t>(sizeof(Pairs::Unit));
            for (int u = 0; u < tile.units; u += kLanes) {
                tmul::add<V>(tile.queries + u, pitch, tile.packed + u * kChunkTokens,
                             kChunkTokens * sizeof(float));
            }
            tmul::store_sums<V>(tile.scores, kBlockTokens * sizeof(float));
            for (int r = 0; r < rows; ++r) {
                for (int v = 0; v < V; ++v) {
                    float* const score = tile.scores + r * kBlockTokens + v * kLanes;
                    store(load(score) * tile.factor, score);
                }
            }
        });
    }

    static void values(const ValueTile<Pairs>& tile, int rows, int vectors) {
        with_constant<kVectors>(vectors, [&](auto V) {
            if (tile.keep) {
                for (int r = 0; r < rows; ++r) {
                    for (int v = 0; v < V; ++v) {
                        float* const to = tile.to + r * tile.stride + v * kLanes;
                        store(load(to) * tile.keep[r], to);
                    }
                }
            }
            tmul::in_memory();
            const std::int64_t pitch = tile.stride * static_cast<std::int64_t>(sizeof(float));
            tile.keep ? tmul::load_sums<V>(tile.to, pitch) : tmul::zero<V>();
            for (int t = 0; t < tile.tokens; t += tmul::kStep) {
                const std::int64_t pair = t / 2;
                tmul::add<V>(tile.weights + pair, kBlockTokens * sizeof(float),
                             tile.turned + pair * tile.stride + tile.at, pitch);
            }
            tmul::store_sums<V>(tile.to, pitch);
        });
    }
};

}  // namespace sftrl::SFTRL_LEVEL::cached

#endif
