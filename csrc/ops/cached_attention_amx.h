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
        constexpr std::int64_t pitch = kChunkTokens * sizeof(float);
        with_constant<kVectors>(vectors, [&](auto V) {
            tmul::zero_sums<V>();
            for (int u = 0; u < tile.units; u += kLanes) {
                tmul::load_tile<4>(tile.queries + u, tile.units * std::int64_t{sizeof(Pairs::Unit)});
                tmul::add_products<V, 4, 5>(tile.packed + u * kChunkTokens, pitch);
            }
            tmul::store_sums<V>(tile.scores, kScorePitch);
            for (int r = 0; r < rows; ++r) {
                for (int v = 0; v < V; ++v) {
                    float* const score = tile.scores + r * kBlockTokens + v * kLanes;
                    store(load(score) * tile.factor, score);
                }
            }
        });
    }

    static void values(const ValueTile<Pairs>& tile, int, int vectors) {
        const std::int64_t pitch = tile.stride * std::int64_t{sizeof(float)};
        with_constant<kVectors>(vectors, [&](auto V) {
            tmul::zero_sums<V>();
            for (int t = 0; t < tile.tokens; t += tmul::kStep) {
                tmul::load_tile<4>(tile.weights + t / 2, kScorePitch);
                tmul::add_products<V, 4, 5>(tile.turned + t / 2 * tile.stride + tile.at, pitch);
            }
            tmul::store_sums<V>(tile.to, pitch);
        });
    }

  private:
    static constexpr std::int64_t kScorePitch = kBlockTokens * sizeof(float);
};

}  // namespace sftrl::SFTRL_LEVEL::cached

#endif
