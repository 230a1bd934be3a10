// A tile configuration on the stack, filled as programs that use AMX fill it. Compile it twice and look at what stands
// before `ldtilecfg`; no CPU with AMX is needed:
//
//     c++ -O2 -mamx-tile -S -o - tileconfig.cpp
//     c++ -O2 -mamx-tile -fno-tree-dse -fno-dse -S -o - tileconfig.cpp
//
// Right code stores the palette (1), eight times 64 bytes per row and eight times 16 rows. GCC 12.2 declares
// `_tile_loadconfig` as inline assembly with one input, `"m" (*((const void **)config))`: 8 of the 64 bytes. Whatever is
// stored beyond them is dead to the optimiser, which leaves only zeros there: tiles of no rows. The first `tileloadd`
// after it is undefined (SIGILL).
#include <immintrin.h>

struct alignas(64) TileConfig {  // Intel SDM, LDTILECFG
    unsigned char palette;
    unsigned char start_row;
    unsigned char reserved[14];
    unsigned short bytes_per_row[16];
    unsigned char rows[16];
};

void configure() {
    TileConfig config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        config.bytes_per_row[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}
