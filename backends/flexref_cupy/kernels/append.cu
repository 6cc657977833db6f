// k, v (T, H D) halves -> the records of every row's new tokens, after its past ones.
//
// Law: `append_values`: the halves themselves. `append_codes`: 4-bit groups along D as storage/quant.py has them, in
// float32: zero is the least value; scale = (greatest - zero) / 15, at least 0, rounded to half; code = (value - zero)
// / scale, rounded to nearest even, within 0 ... 15, and 0 where scale is 0. A number that is not finite leaves a
// scale or a zero that is none. Byte b of a group of n values holds code b, and code b + (n + 1) / 2 in its high nibble.
// WIDE: 16 bytes of values, or 4 bytes of codes, at a time; all addresses must allow it. The bits are the same.
// Block: one tile, up to 64 new tokens of a row, of which it takes every gridDim.z-th; part blockIdx.y of their units.
// Launch: (tiles, ceil(units / THREADS), up to 64) blocks of THREADS; a unit is a thread's, in a copy, or TEAM threads'.

#ifndef WIDE
#define WIDE 1
#endif

constexpr int THREADS = 256;
constexpr int TEAM = 8;  // threads that quantize a group together
constexpr int TILE_TOKENS = 64;
constexpr int PIECE_VALUES = WIDE ? 8 : 1, BYTES = WIDE ? 4 : 1;  // of a thread at a time: values, or bytes of codes

struct alignas(16) Row {
    int first_token, past, fresh, steps;
};

struct alignas(8) Tile {
    int row, first;
};

struct alignas(2 * PIECE_VALUES) Piece {
    half at[PIECE_VALUES];
};

struct alignas(2 * BYTES) Some {
    half at[BYTES];
};

struct alignas(BYTES) Codes {
    unsigned char at[BYTES];
};

// What a block works on: the tokens first, first + gridDim.z, ... before `last`; numbers of the row's new tokens.
struct Work {
    Row row;
    integer start;
    int first, last;

    __device__ __forceinline__ Work(const Place* places, const Row* rows, const Tile* tiles) {
        const Tile tile = tiles[blockIdx.x];
        row = rows[tile.row];
        start = places[tile.row].own;  // no new token is one of a prefix
        first = tile.first + blockIdx.z;
        last = min(row.fresh, tile.first + TILE_TOKENS);
    }
};

// `pieces`: of the K of a token, and of its V.
extern "C" __global__ void append_values(unsigned char* records, const Place* places, const Row* rows,
                                         const Tile* tiles, const half* k, integer k_pitch, const half* v,
                                         integer v_pitch, integer pieces, integer record_bytes) {
    const Work work(places, rows, tiles);
    await_earlier();  // tables are no kernel's work
    const integer unit = blockIdx.y * THREADS + threadIdx.x, is_value = unit >= pieces;
    if (unit >= 2 * pieces) return;
    const integer piece = unit - is_value * pieces, pitch = is_value ? v_pitch : k_pitch;
    const half* const source = (is_value ? v : k) + work.row.first_token * pitch + piece * PIECE_VALUES;
    unsigned char* const target = records + work.start + work.row.past * record_bytes + is_value * record_bytes / 2;
#pragma unroll 4
    for (int token = work.first; token < work.last; token += gridDim.z)
        reinterpret_cast<Piece*>(target + token * record_bytes)[piece] =
            *reinterpret_cast<const Piece*>(source + token * pitch);
}

// The larger of two numbers, or one that is none.
__device__ __forceinline__ float greatest(float a, float b) { return b > a || b != b ? b : a; }

__device__ __forceinline__ unsigned char code_of(half value, float zero, float step) {
    const float level = rintf((to_float(value) - zero) / step);
    return static_cast<unsigned char>(fminf(fmaxf(level, 0.0f), 15.0f));
}

// A group's team: the least and the greatest of its n values.
__device__ __forceinline__ void limits(const half* values, int size, int place, float& low, float& high) {
    const int split = (size + 1) / 2;
    low = 1.0f / 0.0f, high = -low;
    for (int byte = place * BYTES; byte < split; byte += TEAM * BYTES) {
        const Some lower = *reinterpret_cast<const Some*>(values + byte);
        const Some upper = split + byte < size ? *reinterpret_cast<const Some*>(values + split + byte) : lower;
#pragma unroll
        for (int number = 0; number < BYTES; ++number) {
            const float first = to_float(lower.at[number]), second = to_float(upper.at[number]);
            low = fminf(fminf(low, first), second), high = greatest(greatest(high, first), second);
        }
    }
#pragma unroll
    for (int distance = TEAM / 2; distance; distance /= 2) {
        low = fminf(low, __shfl_xor_sync(EVERY_LANE, low, distance));
        high = greatest(high, __shfl_xor_sync(EVERY_LANE, high, distance));
    }
}

__device__ __forceinline__ void encode(const half* values, int size, int place, float zero, float step,
                                       unsigned char* codes) {
    const int split = (size + 1) / 2;
    for (int byte = place * BYTES; byte < split; byte += TEAM * BYTES) {
        const Some lower = *reinterpret_cast<const Some*>(values + byte);
        const bool both = split + byte < size;
        const Some upper = both ? *reinterpret_cast<const Some*>(values + split + byte) : lower;
        Codes packed;
#pragma unroll
        for (int number = 0; number < BYTES; ++number) {
            const unsigned char high = both ? code_of(upper.at[number], zero, step) : 0;
            packed.at[number] = code_of(lower.at[number], zero, step) | high << 4;
        }
        *reinterpret_cast<Codes*>(codes + byte) = packed;
    }
}

extern "C" __global__ void append_codes(unsigned char* records, const Place* places, const Row* rows,
                                        const Tile* tiles, const half* k, integer k_pitch, const half* v,
                                        integer v_pitch, integer heads, integer head_width, integer group_size,
                                        integer head_bytes, integer pairs_offset, integer record_bytes) {
    const Work work(places, rows, tiles);
    await_earlier();  // tables are no kernel's work
    const int width = static_cast<int>(head_width), size = static_cast<int>(group_size), place = threadIdx.x % TEAM;
    const int groups = (width + size - 1) / size, half_units = static_cast<int>(heads) * groups;
    const int asked = (blockIdx.y * THREADS + threadIdx.x) / TEAM, unit = min(asked, 2 * half_units - 1);
    const int is_value = unit >= half_units, of_token = unit - is_value * half_units;
    const int head = of_token / groups, group = of_token - head * groups, values = min(size, width - group * size);
    const integer pitch = is_value ? v_pitch : k_pitch;
    const half* const source =
        (is_value ? v : k) + work.row.first_token * pitch + head * head_width + group * group_size;
    unsigned char* const target = records + work.start + work.row.past * record_bytes + is_value * record_bytes / 2;
    for (int token = work.first; token < work.last; token += gridDim.z) {
        float low, high;
        limits(source + token * pitch, values, place, low, high);
        const half zero = to_half(low + 0.0f);  // -0 becomes 0, whichever of the two came first
        const float span = high - to_float(zero);
        const half scale = to_half((span < 0 ? 0.0f : span) / 15.0f);
        if (asked != unit) continue;
        const float step = to_float(scale);
        unsigned char* const record = target + token * record_bytes;
        encode(source + token * pitch, values, place, to_float(zero), step > 0 ? step : 1.0f / 0.0f,
               record + head * head_bytes + group * ((size + 1) / 2));
        if (place == 0) reinterpret_cast<pair*>(record + pairs_offset)[of_token] = to_pair(scale, zero);
    }
}
