// q (T, H D) -> out (T, H D): softmax(q k^T scale) v over records of halves, for rows with one new token each.
//
// Law, block, launch: see attend_decode.cuh. Halves are used as they lie.
// Forms: WIDTH is D, TEAM a power of two.
//
// It is for rows so few that the memory is idle where warps wait for it: chunks of the records of some keys, first K of a
// segment and then V, are on their way to shared memory, STAGES of them at once. (Of many rows: attend_decode_halves.cu.)
// A warp takes 16 keys at a time as the left operand of its tensor cores, which `ldmatrix` brings: its rows are keys of
// K, or, of V, transposed, numbers of a head. The right operand is q in every column, so that all lanes of quad n get
// the scores of keys n and n + 8, or the weights in every column, so that they get the sums of numbers n and n + 8. Of a
// team's warps each adds up VALUE_TILES times 16 of a head's numbers.

#ifndef WIDTH
#define WIDTH 128
#define HEADS 1
#define TEAM 4
#define CHUNK_STEPS 4
#define STAGES 8
#define MIN_BLOCKS 1
#endif

#include "attend_decode.cuh"

static_assert((TEAM & (TEAM - 1)) == 0, "see above");

constexpr int SETS = WIDTH / 16, VALUE_TILES = (SETS + TEAM - 1) / TEAM;
constexpr int HEAD_BYTES = 2 * WIDTH, ROW_BYTES = HEADS * HEAD_BYTES;
constexpr int PITCH = pitch_of(ROW_BYTES), STAGE_BYTES = CHUNK_KEYS * PITCH;
constexpr int PIECE = 16;  // bytes of a copy

// Whether the two pieces of each sector have changed places in a key's row in shared memory: so eight rows of one piece,
// which `ldmatrix` reads at once, have different banks, though every sector begins at a multiple of 32 bytes.
__device__ __forceinline__ int swapped(int key) { return key / 4 % 2; }

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

    // The products of q with the lane's two keys, of some steps, whose rows begin at `keys`.
    template <int steps>
    __device__ __forceinline__ void score(const unsigned char* const (&keys)[steps], float (&result)[steps][2]) const {
        const int lane = threadIdx.x % WARP;
        const int own_place = lane % 16 * PITCH + (lane / 16 ^ swapped(lane)) * PIECE;
        float sums[steps][4] = {};
#pragma unroll
        for (int set = 0; set < SETS; ++set)
#pragma unroll
            for (int step = 0; step < steps; ++step) {
                pair tile[4];
                load_matrices(tile, keys[step] + own_place + set * 2 * PIECE);
                multiply_tiles(sums[step], tile, operands[set]);
            }
#pragma unroll
        for (int step = 0; step < steps; ++step) result[step][0] = sums[step][0], result[step][1] = sums[step][2];
    }
};

// Chunks of records of a block's heads, on their way to shared memory: of every segment first those of its keys, then
// those of its values. Some threads copy a key's row, each some pieces of it, and then those of the next key that is
// theirs.
struct Carrier {
    static constexpr int PIECES = ROW_BYTES / PIECE, LEAST = (THREADS + CHUNK_KEYS - 1) / CHUNK_KEYS;
    static constexpr int MOST = PIECES < WARP ? PIECES : WARP;
    static constexpr int ROW_THREADS = power_of_two_from(LEAST > MOST ? LEAST : MOST);  // that copy a row
    static constexpr int KEYS_AT_ONCE = THREADS / ROW_THREADS, KEYS_EACH = CHUNK_KEYS / KEYS_AT_ONCE;
    static constexpr int PIECES_EACH = (PIECES + ROW_THREADS - 1) / ROW_THREADS;
    static_assert(CHUNK_KEYS % KEYS_AT_ONCE == 0, "threads have as many keys");

    const unsigned char* numbers;  // the thread's first piece, in the row's own record of its first key
    integer record_bytes, distance;
    unsigned char* stages;
    int last_key, shared, end;  // of the row: its last key, the keys in a prefix; and the end of the block's keys
    int first, last, next;      // the segment's keys that are being asked for, and the first of the next chunk
    int stage, value;           // of the next chunk
    int row_bytes;              // that there are, of the heads left
    Beside<PIECE> under_way[KEYS_EACH][PIECES_EACH];

    // All keys of `work`.
    __device__ __forceinline__ void begin(const unsigned char* records, const Work& work, int heads) {
        numbers = records + work.where.own + work.first_head * HEAD_BYTES + threadIdx.x % ROW_THREADS * PIECE;
        distance = work.where.prefix - work.where.own, shared = static_cast<int>(work.where.shared);
        last_key = work.row.past, row_bytes = (heads - work.first_head) * HEAD_BYTES;
        next = first = work.first_step * STEP, end = work.last_step * STEP, last = min(end, first + SEGMENT_KEYS);
        stage = value = 0;
    }

    // Whether there is the thread's piece `which` of a row.
    __device__ __forceinline__ bool has(int which) const {
        const int piece = threadIdx.x % ROW_THREADS + which * ROW_THREADS;
        return piece < PIECES && piece * PIECE < row_bytes;
    }

    // How far a key's record is from the first one's, by one multiplication of 32 bits.
    __device__ __forceinline__ integer offset(int key) const {
        return static_cast<unsigned long long>(static_cast<unsigned>(key)) * static_cast<unsigned>(record_bytes);
    }

    // Where in a row of its `key`th key the thread's piece goes.
    __device__ __forceinline__ static int place_of(int key, int which) {
        const int place = threadIdx.x % ROW_THREADS, row = threadIdx.x / ROW_THREADS + key * KEYS_AT_ONCE;
        return ((place ^ swapped(row)) + which * ROW_THREADS) * PIECE;
    }

    // The next chunk is asked for, if there is one. The last key stands for those that are not there, up to a whole step.
    __device__ __forceinline__ void start() {
        if (next < last) {
            const int own = threadIdx.x / ROW_THREADS;
            unsigned char* const to = stages + stage * STAGE_BYTES + own * PITCH;
            const unsigned char* const from = numbers + (value ? record_bytes / 2 : 0);
#pragma unroll
            for (int key = 0; key < KEYS_EACH; ++key) {
                const int number = next + own + key * KEYS_AT_ONCE, held = min(number, last_key);
                const unsigned char* const piece = from + offset(held) + (held < shared ? distance : 0);
#pragma unroll
                for (int which = 0; which < PIECES_EACH; ++which)
                    under_way[key][which].start(to + key * KEYS_AT_ONCE * PITCH + place_of(key, which),
                                                piece + which * ROW_THREADS * PIECE, number < last && has(which));
            }
            next += CHUNK_KEYS;
            stage = stage + 1 < STAGES ? stage + 1 : 0;
            if (next >= last) {
                if (value) first = last, last = min(end, first + SEGMENT_KEYS);
                value = !value, next = first;
            }
        }
        close_batch();
    }

    // The oldest chunk that is under way is there for the thread that copied it: its keys are `first_key` to `last_key`.
    // So many others may be under way.
    template <int others> __device__ __forceinline__ void arrive(unsigned char* chunk, int first_key, int last_key) {
        if (!COPIES_BESIDE) {
#pragma unroll
            for (int key = 0; key < KEYS_EACH; ++key) {
                const int row = threadIdx.x / ROW_THREADS + key * KEYS_AT_ONCE;
#pragma unroll
                for (int which = 0; which < PIECES_EACH; ++which)
                    under_way[key][which].arrive(chunk + row * PITCH + place_of(key, which),
                                                 first_key + row < last_key && has(which));
            }
        }
        await_batches<others>();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    attend_decode_few(const unsigned char* records, const Place* places, const Row* rows, const Item* items,
                      const half* q, integer q_pitch, half* out, integer out_pitch, float* partials,
                      unsigned* counters, integer heads, integer record_bytes, integer factor_bits) {
    __shared__ alignas(16) half queries[HEADS][WIDTH];
    __shared__ alignas(16) float scores[HEADS][SEGMENT_KEYS];
    __shared__ alignas(16) pair weights[WARPS][SEGMENT_KEYS / 2];
    DYNAMIC_SHARED(stages);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, place = lane % 4;
    const int team = warp / TEAM, rank = warp % TEAM;
    Work work;
    if (!work.find(places, rows, items, static_cast<int>(heads))) return;
    await_earlier();

    const float factor = __int_as_float(static_cast<int>(factor_bits));
    AskedQueries asked;
    asked.ask(q, q_pitch, work);
    Carrier carrier;
    carrier.stages = stages, carrier.record_bytes = record_bytes;
    carrier.begin(records, work, static_cast<int>(heads));
    // All stages are asked for, or, where one chunk waits in registers, all but one.
#pragma unroll 1
    for (int ahead = COPIES_BESIDE ? 0 : 1; ahead < STAGES; ++ahead) carrier.start();
    asked.put(queries[team]);
    Queries query;
    query.read(queries[team], place);

    int stage = 0;
    bool is_full = COPIES_BESIDE;  // all stages are under way
    // The next chunk, of keys or of values of a segment: it is there for all, and another one is asked for.
    const auto next_chunk = [&](int first, int last) {
        unsigned char* const chunk = stages + stage * STAGE_BYTES;
        if (is_full)
            carrier.arrive<STAGES - 1>(chunk, first * STEP, last * STEP);
        else
            carrier.arrive<STAGES - 2>(chunk, first * STEP, last * STEP);
        __syncthreads();  // the chunk is there, and nobody uses the last one any more
        if (!is_full) carrier.start();
        is_full = false, stage = stage + 1 < STAGES ? stage + 1 : 0;
        return chunk + team * HEAD_BYTES;
    };
    Running<VALUE_TILES> running;
    for (int first = work.first_step; first < work.last_step; first += SEGMENT_STEPS) {
        const int last = min(first + SEGMENT_STEPS, work.last_step);
        for (int begin = first; begin < last; begin += CHUNK_STEPS) {
            const unsigned char* const chunk = next_chunk(begin, last);
            const int steps = min(CHUNK_STEPS, last - begin);  // that there are
#pragma unroll
            for (int number = 0; number < CHUNK_STEPS; number += TEAM * TOGETHER) {
                const int step = number + ((rank - (begin - first)) & (TEAM - 1));  // its own, of a segment's
                if (step >= steps) break;
                const unsigned char* keys[TOGETHER];
                int of_chunk[TOGETHER];
                float found[TOGETHER][2];
#pragma unroll
                for (int which = 0; which < TOGETHER; ++which) {  // without another step it is the same one again
                    of_chunk[which] = step + which * TEAM < steps ? step + which * TEAM : step;
                    keys[which] = chunk + of_chunk[which] * STEP * PITCH;
                }
                query.score(keys, found);
#pragma unroll
                for (int which = 0; which < TOGETHER; ++which) {
                    const int key = (begin - first + of_chunk[which]) * STEP + quad + 8 * place;
                    if (place < 2) scores[team][key] = place ? found[which][1] : found[which][0];
                }
            }
        }
        if (TEAM > 1)
            __syncthreads();
        else
            __syncwarp();
        Weights weight;
        weight.weigh(scores[team], work.row.past + 1 - first * STEP, factor, weights[warp]);
        // Of a matrix of 8 keys and 8 numbers a lane's row is a key's; four matrices are 16 keys and 16 numbers.
        const int own_key = lane % 8 + lane / 16 * 8, own_side = lane / 8 % 2 ^ swapped(lane);
        int tile_places[VALUE_TILES];
#pragma unroll
        for (int tile = 0; tile < VALUE_TILES; ++tile)
            tile_places[tile] = own_key * PITCH + (2 * min(rank * VALUE_TILES + tile, SETS - 1) + own_side) * PIECE;
        Sums<VALUE_TILES> sums = {};
        for (int begin = first; begin < last; begin += CHUNK_STEPS) {
            const unsigned char* const chunk = next_chunk(begin, last);
            const int steps = min(CHUNK_STEPS, last - begin);
            pair values[CHUNK_STEPS][VALUE_TILES][4], operands[CHUNK_STEPS][2];
            float less[CHUNK_STEPS];
#pragma unroll
            for (int step = 0; step < CHUNK_STEPS; ++step) {
                const int held = step < steps ? step : 0;  // without another step it is the first one again
                const int of_segment = begin - first + held;
                Weights::read(operands[step], weights[warp], of_segment, place);
                less[step] = __shfl_sync(EVERY_LANE, weight.less, 2 * of_segment);
#pragma unroll
                for (int tile = 0; tile < VALUE_TILES; ++tile)
                    load_matrices_transposed(values[step][tile], chunk + held * STEP * PITCH + tile_places[tile]);
            }
#pragma unroll
            for (int step = 0; step < CHUNK_STEPS; ++step) {
                if (step >= steps) break;
                sums.shrink(less[step]);  // by 1, as a rule
                sums.add(values[step], operands[step]);
            }
        }
        running.add(sums, weight.highest, first == work.first_step, place);
    }

    int columns[results_of(VALUE_TILES)];
#pragma unroll
    for (int number = 0; number < results_of(VALUE_TILES); ++number) {
        const int tile = number / 2 * 4 + place, column = (rank * VALUE_TILES + tile) * 16 + quad + number % 2 * 8;
        columns[number] = tile < VALUE_TILES ? min(column, WIDTH) : WIDTH;
    }
    finish(work, running, columns, out, out_pitch, partials, counters, heads);
}
