// q (T, H D) -> out (T, H D): softmax(q k^T scale) v over records of halves, for rows with one new token each.
//
// Law, block, launch: see attend_decode.cuh; here TEAM is 1. Halves are used as they lie.
// Forms: WIDTH is D.
//
// It is for many rows: a warp alone takes its keys step by step, K and V of a step together, from the memory to its
// registers, since warps ask for so many bytes that the memory is busy anyway. (Of few rows: attend_decode_few.cu.)
// A warp takes 16 keys at a time as the left operand of its tensor cores, its lanes in 8 quads of 4. For scores, quad n
// reads keys n and n + 8, each lane some of their numbers; the right operand is q in every column, so that all lanes of
// the quad get the score. For values, lane r of every quad reads keys 2 r, 2 r + 1, 2 r + 8 and 2 r + 9, each quad some
// of their numbers, and the right operand is the weights.

#ifndef WIDTH
#define WIDTH 128
#define HEADS 4
#define TEAM 1
#define CHUNK_STEPS 0
#define STAGES 0
#define MIN_BLOCKS 3
#endif

#include "attend_decode.cuh"

static_assert(TEAM == 1, "see above");

// A unit is 8 numbers of a head, and a lane's load. Of values a warp's quads take some tiles, of the two numbers of a
// word each; the VALUE_TILES of a unit or two are a lane's, of each of its 4 keys.
constexpr int UNITS = WIDTH / 8, SETS = WIDTH / 16;
constexpr int VALUE_PLACES = 8, VALUE_UNITS = (UNITS + VALUE_PLACES - 1) / VALUE_PLACES, VALUE_TILES = 4 * VALUE_UNITS;

// K or V of a head as a lane sees them: in the row's first record, its first unit.
struct Source {
    const unsigned char* numbers;
    unsigned record_bytes;
    int last_key;      // of the row; keys after it are read as this one, and count for nothing
    int shared;        // so many of the row's first keys are in the prefix, which begins
    integer distance;  // so many bytes from where the row's own records would

    __device__ __forceinline__ integer start(int key) const { return key < shared ? distance : 0; }

    __device__ __forceinline__ integer offset(int key) const {
        return static_cast<unsigned long long>(static_cast<unsigned>(min(key, last_key))) * record_bytes;
    }
};

// What a lane reads of two keys for scores: every fourth eight of the keys' numbers.
struct Keys {
    static constexpr int COUNT = (UNITS + 3) / 4;
    unsigned words[2][COUNT][4];

    __device__ __forceinline__ void fetch(const Source& source, int step, int quad, int place) {
        const unsigned char* const first = source.numbers + source.start(step * STEP);
#pragma unroll
        for (int number = 0; number < 2; ++number) {
            const unsigned char* const key = first + source.offset(step * STEP + quad + 8 * number);
#pragma unroll
            for (int eight = 0; eight < COUNT; ++eight) {
#pragma unroll
                for (int missing = 0; missing < 4; ++missing) words[number][eight][missing] = 0;
                if (UNITS % 4 == 0 || 4 * eight + place < UNITS) load<4>(words[number][eight], key + 64 * eight);
            }
        }
    }

    // The lanes of a quad have read an eight each; now each has two numbers of every one.
    __device__ __forceinline__ static void exchange(const unsigned (&read)[4], int place, unsigned (&found)[4]) {
        const bool upper = place & 2, odd = place & 1;
        unsigned low[2], high[2];  // of the first two lanes, and of the last two
#pragma unroll
        for (int word = 0; word < 2; ++word) {
            const unsigned taken = __shfl_xor_sync(EVERY_LANE, upper ? read[word] : read[2 + word], 2);
            low[word] = upper ? taken : read[word], high[word] = upper ? read[2 + word] : taken;
        }
        const unsigned first = __shfl_xor_sync(EVERY_LANE, odd ? low[0] : low[1], 1);
        const unsigned second = __shfl_xor_sync(EVERY_LANE, odd ? high[0] : high[1], 1);
        found[0] = odd ? first : low[0], found[1] = odd ? low[1] : first;
        found[2] = odd ? second : high[0], found[3] = odd ? high[1] : second;
    }

    // A left operand of every set, in their order, to `use(set, tile)`.
    template <typename Use> __device__ __forceinline__ void for_each_set(Use use) const {
        const int place = threadIdx.x % 4;
#pragma unroll
        for (int eight = 0; eight < COUNT; ++eight) {
            unsigned first[4], second[4];
            exchange(words[0][eight], place, first), exchange(words[1][eight], place, second);
#pragma unroll
            for (int both = 0; both < 4; both += 2) {
                if (4 * eight + both >= UNITS) continue;
                const pair tile[4] = {first[both], second[both], first[both + 1], second[both + 1]};
                use(2 * eight + both / 2, tile);
            }
        }
    }
};

// q of the warp's head as right operands, the same numbers in every column.
struct Queries {
    pair operands[SETS][2];

    __device__ __forceinline__ void read(const half* numbers, int place) {
#pragma unroll
        for (int set = 0; set < SETS; ++set)
#pragma unroll
            for (int side = 0; side < 2; ++side)
                load<1>(&operands[set][side], numbers + 16 * set + 8 * side + 2 * place);
    }

    // The products of q with the lane's two keys.
    __device__ __forceinline__ void score(const Keys& keys, float (&result)[2]) const {
        float sums[4] = {};
        keys.for_each_set([&](int set, const pair(&tile)[4]) { multiply_tiles(sums, tile, operands[set]); });
        result[0] = sums[0], result[1] = sums[2];
    }
};

// Which unit of a head is number `number` of those of a quad.
__device__ __forceinline__ int unit_of(int quad, int number) { return number * VALUE_PLACES + quad; }

// What a lane reads of four keys for their values: some units of each.
struct Values {
    unsigned words[4][VALUE_UNITS * 4];

    __device__ __forceinline__ void fetch(const Source& source, int step, int quad, int place) {
        const unsigned char* const first = source.numbers + source.start(step * STEP);
#pragma unroll
        for (int number = 0; number < 4; ++number) {
            const integer offset = source.offset(step * STEP + 2 * place + number % 2 + number / 2 * 8);
#pragma unroll
            for (int which = 0; which < VALUE_UNITS; ++which) {
                unsigned* const target = words[number] + 4 * which;
#pragma unroll
                for (int missing = 0; missing < 4; ++missing) target[missing] = 0;
                if (UNITS % (VALUE_PLACES * VALUE_UNITS) == 0 || unit_of(quad, which) < UNITS)
                    load<4>(target, first + offset + which * VALUE_PLACES * 16);
            }
        }
    }

    // As a left operand: of a tile two numbers, of four keys.
    __device__ __forceinline__ void expand(int tile, pair (&operand)[4]) const {
#pragma unroll
        for (int both = 0; both < 2; ++both) {  // keys 2 r and 2 r + 1, then the two that lie 8 further on
            operand[2 * both] = low_halves(words[2 * both][tile], words[2 * both + 1][tile]);
            operand[2 * both + 1] = high_halves(words[2 * both][tile], words[2 * both + 1][tile]);
        }
    }
};

// The weights of a step's keys, whose scores all lanes have, two each.
struct StepWeights {
    float highest = NOTHING;  // up to here

    // Scores of keys `key` and `key` + 8 of the row, whose first key that does not count is `end`. `operand` gets the
    // right operand of the values; what there is before shrinks to the result.
    __device__ __forceinline__ float weigh(float (&found)[2], int key, int end, float factor, int place,
                                           pair (&operand)[2]) {
#pragma unroll
        for (int other = 0; other < 2; ++other)
            found[other] = key + 8 * other < end ? __fmul_rn(found[other], factor) : NOTHING;
        float most = fmaxf(found[0], found[1]);
#pragma unroll
        for (int distance = 4; distance < WARP; distance *= 2)
            most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, distance));
        most = fmaxf(most, highest);
        const float shrunk = most > highest ? power_of_two(highest - most) : 1.0f;
        const float base = most == NOTHING ? 0.0f : most;
        highest = most;
        const pair both = to_pair(power_of_two(found[0] - base), power_of_two(found[1] - base));
        const unsigned even = __shfl_sync(EVERY_LANE, both, 8 * place);
        const unsigned odd = __shfl_sync(EVERY_LANE, both, 8 * place + 4);
        operand[0] = low_halves(even, odd), operand[1] = high_halves(even, odd);
        return shrunk;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    attend_decode_halves(const unsigned char* records, const Place* places, const Row* rows, const Item* items,
                         const half* q, integer q_pitch, half* out, integer out_pitch, float* partials,
                         unsigned* counters, integer heads, integer record_bytes, integer factor_bits) {
    __shared__ alignas(16) half queries[HEADS][WIDTH];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, place = lane % 4;
    Work work;
    if (!work.find(places, rows, items, static_cast<int>(heads))) return;
    await_earlier();

    const float factor = __int_as_float(static_cast<int>(factor_bits));
    AskedQueries asked;
    asked.ask(q, q_pitch, work);
    const int key_distance = min(place, UNITS - 1) * 16;
    Source source;
    source.record_bytes = static_cast<unsigned>(record_bytes), source.last_key = work.row.past;
    source.shared = static_cast<int>(work.where.shared), source.distance = work.where.prefix - work.where.own;
    source.numbers = records + work.where.own + work.head * (2 * WIDTH) + key_distance;
    Source value_source = source;
    value_source.numbers += record_bytes / 2 + 16 * min(unit_of(quad, 0), UNITS - 1) - key_distance;
    asked.put(queries[warp]);
    Keys keys;
    Values values;
    keys.fetch(source, work.first_step, quad, place);
    values.fetch(value_source, work.first_step, quad, place);
    Queries query;
    query.read(queries[warp], place);
    Running<VALUE_TILES> running;
    for (int first = work.first_step; first < work.last_step; first += SEGMENT_STEPS) {
        const int last = min(first + SEGMENT_STEPS, work.last_step);
        StepWeights weight;
        Sums<VALUE_TILES> sums = {};
        for (int step = first; step < last; ++step) {
            const bool goes_on = step + 1 < work.last_step;
            float found[2];
            query.score(keys, found);
            if (goes_on) keys.fetch(source, step + 1, quad, place);
            pair operand[2];
            const float less = weight.weigh(found, step * STEP + quad, work.row.past + 1, factor, place, operand);
            if (less != 1) sums.shrink(less);
            sums.add(values, operand);
            if (goes_on) values.fetch(value_source, step + 1, quad, place);
        }
        running.add(sums, weight.highest, first == work.first_step, place);
    }

    int columns[results_of(VALUE_TILES)];
#pragma unroll
    for (int number = 0; number < results_of(VALUE_TILES); ++number)
        columns[number] = min(8 * unit_of(quad, number / 2) + 2 * place + number % 2, WIDTH);
    finish(work, running, columns, out, out_pitch, partials, counters, heads);
}
