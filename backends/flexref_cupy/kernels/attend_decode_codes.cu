// q (T, H D) -> out (T, H D): softmax(q k^T scale) v over records of 4-bit groups, for rows with one new token each.
//
// Law, block, launch: see attend_decode.cuh. A number is the half nearest to code * scale + zero.
// Forms: WIDTH is D, GROUP a power of two or D itself.
//
// A chunk is some keys' codes and pairs of K, or of V, of the block's heads. A warp takes 16 keys at a time as the left
// operand of its tensor cores, its lanes in 8 quads of 4. For scores, quad n reads keys n and n + 8, each lane some of
// their numbers; the right operand is q in every column, so that all lanes of the quad get the score. For values, lane r
// of every quad reads keys 2 r, 2 r + 1, 2 r + 8 and 2 r + 9, each quad some of their numbers, and the right operand is
// the weights.

#ifndef WIDTH
#define WIDTH 128
#define GROUP 64
#define HEADS 4
#define TEAM 1
#define CHUNK_STEPS 4
#define STAGES 2
#define MIN_BLOCKS 4
#endif

#include "attend_decode.cuh"

// A unit is 8 numbers of a head: a word of codes.
constexpr int UNITS = WIDTH / 8, SETS = WIDTH / 16;

// Units of a group, groups of a head, and bytes of a whole group that are a lane's for scores: a quad's lanes part the
// bytes of every group evenly. A head may end with a short group, of 16 numbers.
constexpr int GROUP_UNITS = GROUP / 8, GROUP_SETS = GROUP_UNITS / 2;
constexpr int GROUPS = (UNITS + GROUP_UNITS - 1) / GROUP_UNITS;
constexpr int PART_BYTES = GROUP_UNITS, PART_WORDS = PART_BYTES < 4 ? 1 : PART_BYTES / 4;
constexpr bool SHORT_GROUP = UNITS % GROUP_UNITS != 0;
static_assert(!SHORT_GROUP || UNITS % GROUP_UNITS == 2, "a short group is one set");
static_assert(GROUPS != 3 && GROUPS <= 4, "the pairs of a head are one load");

// Of values a warp's quads take some tiles, of the two numbers of a byte each. VALUE_TILES of them lie side by side, and
// are a lane's, of each of its 4 keys.
constexpr int VALUE_PLACES = 8 * TEAM;
constexpr int VALUE_TILES = power_of_two_from((WIDTH / 2 + VALUE_PLACES - 1) / VALUE_PLACES);
static_assert((4 * GROUP_UNITS) % VALUE_TILES == 0, "a lane's values are of one group");

// For each key a row in shared memory has its numbers and then its pairs.
constexpr int NUMBERS_BYTES = HEADS * WIDTH / 2, PAIRS_BYTES = HEADS * GROUPS * 4;
constexpr int NUMBERS_PIECE = NUMBERS_BYTES % 16 ? 8 : 16;  // bytes of a copy
constexpr int PAIRS_PIECE = PAIRS_BYTES % 16 ? PAIRS_BYTES % 8 ? 4 : 8 : 16;
constexpr int PITCH = pitch_of(NUMBERS_BYTES + PAIRS_BYTES), STAGE_BYTES = CHUNK_KEYS * PITCH;
static_assert(CHUNK_STEPS % (TEAM * TOGETHER) == 0, "a team has its steps");
constexpr bool PREFETCHES = HEADS == 1;  // blocks are few, and the memory is idle when they begin

// The place in its head of number `which`, of four, that lane `place` of a quad brings to a set of 16: 0 and 1 stand
// side by side in one operand, 2 and 3 in the other. A set is a word of every lane's part of a group, its low nibbles or
// its high ones; a short group is one set.
__device__ __forceinline__ int number_of(int set, int place, int which) {
    const int group = set / GROUP_SETS, within = set % GROUP_SETS, rest = UNITS - group * GROUP_UNITS;
    const int half_size = 4 * (rest < GROUP_UNITS ? rest : GROUP_UNITS), start = group * GROUP_UNITS * 8;
    if (half_size == 8) return start + which / 2 * half_size + 2 * place + which % 2;
    return start + within % 2 * half_size + 4 * (place * PART_WORDS + within / 2) + which % 2 * 2 + which / 2;
}

// What a lane reads of two keys for scores, of codes, in each of some steps: its parts of all groups, and their pairs.
template <int steps> struct CodesOfKeys {
    unsigned words[steps][2][GROUPS][PART_WORDS], pairs[steps][2][GROUPS];

    // `numbers`, `first_pair`: of the lane's first key of a step, in shared memory.
    __device__ __forceinline__ void fetch(int step, const unsigned char* numbers, const unsigned char* first_pair,
                                          int place) {
#pragma unroll
        for (int key = 0; key < 2; ++key) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const unsigned char* const part = numbers + 8 * key * PITCH + group * GROUP_UNITS * 4;
                const bool is_short = SHORT_GROUP && group == GROUPS - 1;
                if (PART_BYTES == 2 || is_short)
                    words[step][key][group][0] =
                        *reinterpret_cast<const unsigned short*>(part - place * (is_short ? PART_BYTES - 2 : 0));
                else
                    load<PART_WORDS>(words[step][key][group], part);
            }
            load<GROUPS>(pairs[step][key], first_pair + 8 * key * PITCH);
        }
    }

    // A left operand of every set of a group, in their order, to `use(step, set, tile)`.
    template <typename Use> __device__ __forceinline__ void for_each_set(Use use) const {
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            pair scale[steps][2], zero[steps][2];
#pragma unroll
            for (int step = 0; step < steps; ++step)
#pragma unroll
                for (int key = 0; key < 2; ++key) {
                    scale[step][key] = twice_first(pairs[step][key][group]);
                    zero[step][key] = twice_second(pairs[step][key][group]);
                }
            if (PART_BYTES == 2 || (SHORT_GROUP && group == GROUPS - 1)) {
#pragma unroll
                for (int step = 0; step < steps; ++step) {
                    pair tile[4];
#pragma unroll
                    for (int key = 0; key < 2; ++key) {
                        const unsigned both = permute_bytes(words[step][key][group][0], 0, 0x4140u);  // bytes 0 and 1
                        numbers_of(both, scale[step][key], zero[step][key], tile[key], tile[2 + key]);
                    }
                    use(step, group * GROUP_SETS, tile);
                }
                continue;
            }
#pragma unroll
            for (int word = 0; word < PART_WORDS; ++word)
#pragma unroll
                for (int step = 0; step < steps; ++step) {
                    pair low[4], high[4];
#pragma unroll
                    for (int key = 0; key < 2; ++key) {
                        const unsigned codes = words[step][key][group][word];
                        numbers_of(codes, scale[step][key], zero[step][key], low[key], high[key]);
                        numbers_of(codes >> 8, scale[step][key], zero[step][key], low[2 + key], high[2 + key]);
                    }
                    use(step, group * GROUP_SETS + 2 * word, low);
                    use(step, group * GROUP_SETS + 2 * word + 1, high);
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
                operands[set][side] = to_pair(numbers[number_of(set, place, 2 * side)],
                                              numbers[number_of(set, place, 2 * side + 1)]);
    }

    // The products of q with the lane's two keys, of some steps.
    template <int steps>
    __device__ __forceinline__ void score(const CodesOfKeys<steps>& keys, float (&result)[steps][2]) const {
        float sums[steps][4] = {};
        keys.for_each_set(
            [&](int step, int set, const pair(&tile)[4]) { multiply_tiles(sums[step], tile, operands[set]); });
#pragma unroll
        for (int step = 0; step < steps; ++step) result[step][0] = sums[step][0], result[step][1] = sums[step][2];
    }
};

// What a lane reads of four keys for their values: some bytes of each key, and the pair of their group.
struct CodesOfValues {
    static constexpr int WORDS = VALUE_TILES < 4 ? 1 : VALUE_TILES / 4;
    unsigned words[4][WORDS], pairs[4];

    // `numbers`, `first_pair`: of the lane's first key of a step, in shared memory, where its others follow 4 rows apart.
    __device__ __forceinline__ void fetch(const unsigned char* numbers, const unsigned char* first_pair) {
#pragma unroll
        for (int number = 0; number < 4; ++number) {
            const unsigned char* const part = numbers + 4 * number * PITCH;
            if (VALUE_TILES == 1)
                words[number][0] = *part;
            else if (VALUE_TILES == 2)
                words[number][0] = *reinterpret_cast<const unsigned short*>(part);
            else
                load<WORDS>(words[number], part);
            load<1>(pairs + number, first_pair + 4 * number * PITCH);
        }
    }

    __device__ __forceinline__ void expand(int tile, pair (&operand)[4]) const {
#pragma unroll
        for (int both = 0; both < 2; ++both) {
            const pair scale = low_halves(pairs[2 * both], pairs[2 * both + 1]);
            const pair zero = high_halves(pairs[2 * both], pairs[2 * both + 1]);
            const unsigned a = words[2 * both][tile / 4], b = words[2 * both + 1][tile / 4];
            const unsigned codes = permute_bytes(a, b, tile % 4 | (4 + tile % 4) << 8);  // in bytes 0 and 2
            numbers_of(codes, scale, zero, operand[2 * both], operand[2 * both + 1]);
        }
    }
};
// Where number `number` of a lane's results lies in its head; WIDTH or more if it is none.
__device__ __forceinline__ int column_of(int number, int units_place, int place) {
    const int tile = number / 2 * 4 + place, high = number % 2;
    const int byte = units_place * VALUE_TILES + tile, group = byte / (4 * GROUP_UNITS);
    const int rest = UNITS - group * GROUP_UNITS;
    if (tile >= VALUE_TILES || byte >= WIDTH / 2) return WIDTH;
    return byte + 4 * (group + high) * GROUP_UNITS - (rest < GROUP_UNITS ? high * 4 * (GROUP_UNITS - rest) : 0);
}
// Chunks of codes of a block's heads, on their way to shared memory: of every segment first those of its keys, then those
// of its values. Codes come so because one head's are but 64 bytes of a record, while those of a block's heads are whole
// lines. A few threads copy a key's row, each some pieces of it, and then those of the next key that is theirs.
struct Carrier {
    static constexpr int NUMBERS = NUMBERS_BYTES / NUMBERS_PIECE, PAIRS = PAIRS_BYTES / PAIRS_PIECE;  // pieces of a row
    static constexpr int MOST_KEYS = CHUNK_KEYS < 64 ? CHUNK_KEYS : 64;  // at once: a prefix ends at a multiple of 64
    static constexpr int LEAST = (THREADS + MOST_KEYS - 1) / MOST_KEYS, MOST = NUMBERS < 8 ? NUMBERS : 8;
    static constexpr int ROW_THREADS = power_of_two_from(LEAST > MOST ? LEAST : MOST);  // that copy a row
    static constexpr int KEYS_AT_ONCE = THREADS / ROW_THREADS, KEYS_EACH = CHUNK_KEYS / KEYS_AT_ONCE;
    static constexpr int NUMBERS_EACH = (NUMBERS + ROW_THREADS - 1) / ROW_THREADS;
    static constexpr int PAIRS_EACH = (PAIRS + ROW_THREADS - 1) / ROW_THREADS;
    static_assert(KEYS_AT_ONCE % STEP == 0 && CHUNK_KEYS % KEYS_AT_ONCE == 0, "a thread's keys have one place in steps");

    unsigned long long numbers;  // address of the thread's first piece, in the row's record of its first key of a chunk
    integer to_pairs, value_offset, distance, record_bytes;
    unsigned char* stages;
    int keys_row, values_row;    // where that piece goes, in a chunk of keys and in one of values
    int keys, shared, end;       // keys of the row, those of them in a prefix, and the end of the block's
    int first, last, next;       // the segment's keys that are being asked for, and the first of the next chunk
    int stage, value;            // of the next chunk
    bool has_numbers[NUMBERS_EACH], has_pairs[PAIRS_EACH];  // whether there is the thread's next piece of a row
    Beside<NUMBERS_PIECE> numbers_under_way[KEYS_EACH][NUMBERS_EACH];
    Beside<PAIRS_PIECE> pairs_under_way[KEYS_EACH][PAIRS_EACH];

    // Of a chunk's keys, in their order; of its values, so that those that a warp's lanes read at once are side by side.
    __device__ __forceinline__ static int row_of_value(int key) { return (key & ~7) | key % 2 * 4 | key / 2 % 4; }

    // Keys `first_key` to `end_key`, whole steps, of a row whose records begin at `records`; so far in a record are the
    // numbers and the pairs of the block's first head, after which so many `heads` are left.
    __device__ __forceinline__ void begin(const unsigned char* records, integer first_numbers, integer first_pairs,
                                          int heads, int first_key, int end_key) {
        const int place = threadIdx.x % ROW_THREADS, own = threadIdx.x / ROW_THREADS;
        numbers = reinterpret_cast<unsigned long long>(records) + first_numbers;
        numbers += place * NUMBERS_PIECE + own * record_bytes;
        to_pairs = first_pairs - first_numbers + place * (PAIRS_PIECE - NUMBERS_PIECE);
        keys_row = own * PITCH + place * NUMBERS_PIECE, values_row = row_of_value(own) * PITCH + place * NUMBERS_PIECE;
        next = first = first_key, end = end_key, last = min(end, first + SEGMENT_KEYS), stage = value = 0;
#pragma unroll
        for (int which = 0; which < NUMBERS_EACH; ++which) {
            const int at = place + which * ROW_THREADS;
            has_numbers[which] = at < NUMBERS && at * NUMBERS_PIECE < heads * (WIDTH / 2);
        }
#pragma unroll
        for (int which = 0; which < PAIRS_EACH; ++which) {
            const int at = place + which * ROW_THREADS;
            has_pairs[which] = at < PAIRS && at * PAIRS_PIECE < heads * (GROUPS * 4);
        }
    }

    __device__ __forceinline__ static unsigned char* pairs_place(unsigned char* numbers_place) {
        const int place = threadIdx.x % ROW_THREADS;
        return numbers_place + NUMBERS_BYTES + place * (PAIRS_PIECE - NUMBERS_PIECE);
    }

    // The thread's pieces of one key to its row, if there is such a key; the places of a chunk's first key are given.
    template <int key, int which = 0>
    __device__ __forceinline__ void copy(unsigned char* to, unsigned char* pairs_to, unsigned long long from,
                                         bool is_there) {
        constexpr int DOWN = key * KEYS_AT_ONCE * PITCH;
        if constexpr (which < NUMBERS_EACH) {
            constexpr int ALONG = which * ROW_THREADS * NUMBERS_PIECE;
            numbers_under_way[key][which].template start<DOWN + ALONG, ALONG>(to, reinterpret_cast<const void*>(from),
                                                                             is_there && has_numbers[which]);
        }
        if constexpr (which < PAIRS_EACH) {
            constexpr int ALONG = which * ROW_THREADS * PAIRS_PIECE;
            pairs_under_way[key][which].template start<DOWN + ALONG, ALONG>(
                pairs_to, reinterpret_cast<const void*>(from + to_pairs), is_there && has_pairs[which]);
        }
        if constexpr (which + 1 < NUMBERS_EACH || which + 1 < PAIRS_EACH)
            copy<key, which + 1>(to, pairs_to, from, is_there);
    }

    template <int key = 0> __device__ __forceinline__ void copy_all(unsigned char* to, unsigned char* pairs_to,
                                                                    unsigned long long from) {
        copy<key>(to, pairs_to, from, true);
        if constexpr (key + 1 < KEYS_EACH) copy_all<key + 1>(to, pairs_to, from + KEYS_AT_ONCE * record_bytes);
    }

    // The last key stands for those that are not there, up to a whole step.
    template <int key = 0> __device__ __forceinline__ void copy_some(unsigned char* to, unsigned char* pairs_to,
                                                                     unsigned long long from) {
        const int number = next + key * KEYS_AT_ONCE, own = threadIdx.x / ROW_THREADS;
        const integer moved = CHUNK_KEYS > 64 && next < shared && number >= shared ? -distance : 0;
        const integer away = static_cast<integer>(min(number, keys - 1 - own)) * record_bytes;
        copy<key>(to, pairs_to, from + moved + away, number + own < last);
        if constexpr (key + 1 < KEYS_EACH) copy_some<key + 1>(to, pairs_to, from);
    }

    __device__ __forceinline__ void start() {
        if (next < last) {
            unsigned char* const to = stages + stage * STAGE_BYTES + (value ? values_row : keys_row);
            unsigned char* const pairs_to = pairs_place(to);
            const unsigned long long from = numbers + (next < shared ? distance : 0) + (value ? value_offset : 0);
            if (next + CHUNK_KEYS <= (CHUNK_KEYS > 64 && next < shared ? shared : keys))
                copy_all(to, pairs_to, from + static_cast<unsigned long long>(static_cast<unsigned>(next)) *
                                                  static_cast<unsigned>(record_bytes));
            else
                copy_some(to, pairs_to, from);
            next += CHUNK_KEYS;
            stage = stage + 1 < STAGES ? stage + 1 : 0;
            if (next >= last) {
                if (value) first = last, last = min(end, first + SEGMENT_KEYS);
                value = !value, next = first;
            }
        }
        close_batch();
    }

    // The oldest chunk that is under way is there for the thread that copied it; it has so many keys, or values, from
    // its `first_key` on to `last_key`, and goes to this place.
    __device__ __forceinline__ void arrive(int place, int value, int first_key, int last_key) {
        if (!COPIES_BESIDE) {
            unsigned char* const to = stages + place * STAGE_BYTES + (value ? values_row : keys_row);
            unsigned char* const pairs_to = pairs_place(to);
#pragma unroll
            for (int key = 0; key < KEYS_EACH; ++key) {
                const bool is_there = first_key + key * KEYS_AT_ONCE + threadIdx.x / ROW_THREADS < last_key;
                const int bytes = key * KEYS_AT_ONCE * PITCH;
#pragma unroll
                for (int which = 0; which < NUMBERS_EACH; ++which)
                    numbers_under_way[key][which].arrive(to + bytes + which * (ROW_THREADS * NUMBERS_PIECE),
                                                         is_there && has_numbers[which]);
#pragma unroll
                for (int which = 0; which < PAIRS_EACH; ++which)
                    pairs_under_way[key][which].arrive(pairs_to + bytes + which * (ROW_THREADS * PAIRS_PIECE),
                                                       is_there && has_pairs[which]);
            }
        }
        await_batches<STAGES - 2>();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    attend_decode_codes(const unsigned char* records, const Place* places, const Row* rows, const Item* items,
                        const half* q, integer q_pitch, half* out, integer out_pitch, float* partials,
                        unsigned* counters, integer heads, integer head_bytes, integer pairs_offset,
                        integer record_bytes, integer factor_bits) {
    __shared__ alignas(16) half queries[HEADS][WIDTH];
    __shared__ alignas(16) float scores[HEADS][SEGMENT_KEYS];
    __shared__ alignas(16) pair weights[WARPS][SEGMENT_KEYS / 2];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, place = lane % 4;
    const int team = warp / TEAM, rank = warp % TEAM, units_place = 8 * rank + quad;
    Work work;
    if (!work.find(places, rows, items, static_cast<int>(heads))) return;
    const int first_step = work.first_step, last_step = work.last_step, past = work.row.past;
    if constexpr (PREFETCHES) {
        constexpr int PIECES = WIDTH < 32 ? 1 : WIDTH / 32;
        const int first_key = first_step * STEP, end = min(last_step * STEP, past);
        const unsigned char* const first = records + work.head * head_bytes + threadIdx.x % PIECES * 16;
        for (int key = first_key + threadIdx.x / PIECES; key < end; key += THREADS / PIECES) {
            const integer start = key < work.where.shared ? work.where.prefix : work.where.own;
            const unsigned char* const from = first + start + key * record_bytes;
            prefetch(from), prefetch(from + record_bytes / 2);
        }
    }
    await_earlier();  // tables are no kernel's work

    const float factor = __int_as_float(static_cast<int>(factor_bits));
    AskedQueries asked;
    asked.ask(q, q_pitch, work);
    DYNAMIC_SHARED(stages);
    Carrier carrier;
    carrier.stages = stages, carrier.record_bytes = record_bytes, carrier.value_offset = record_bytes / 2;
    carrier.keys = past + 1, carrier.shared = static_cast<int>(work.where.shared);
    carrier.distance = work.where.prefix - work.where.own;
    carrier.begin(records + work.where.own, work.first_head * head_bytes, pairs_offset + work.first_head * GROUPS * 4,
                  static_cast<int>(heads) - work.first_head, first_step * STEP, last_step * STEP);
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) carrier.start();
    asked.put(queries[team]);
    const int of_head = team * (NUMBERS_BYTES / HEADS), pairs_of_head = NUMBERS_BYTES + team * GROUPS * 4;
    int stage = 0;
    // The next chunk, of keys or of values of a segment: it is there for all, and another one is asked for.
    const auto next_chunk = [&](int value, int first, int last) {
        carrier.arrive(stage, value, first * STEP, last * STEP);
        __syncthreads();  // the chunk is there, and nobody uses the last one any more
        carrier.start();
        const unsigned char* const place = stages + stage * STAGE_BYTES;
        stage = stage + 1 < STAGES ? stage + 1 : 0;
        return place;
    };
    Running<VALUE_TILES> running;
    for (int first = first_step; first < last_step; first += SEGMENT_STEPS) {
        const int count = min(SEGMENT_STEPS, last_step - first), chunks = (count + CHUNK_STEPS - 1) / CHUNK_STEPS;
        {
            Queries query;
            query.read(queries[team], place);
            const int numbers_place = quad * PITCH + of_head + place * PART_BYTES;
            const int pairs_place = quad * PITCH + pairs_of_head;
            for (int chunk = 0; chunk < chunks; ++chunk) {
                const unsigned char* const there = next_chunk(0, first + chunk * CHUNK_STEPS, first + count);
                const int steps = count - chunk * CHUNK_STEPS;  // that there are
#pragma unroll
                for (int step = 0; step < CHUNK_STEPS; step += TEAM * TOGETHER) {
                    if (step + rank >= steps) break;
                    CodesOfKeys<TOGETHER> keys;
                    int of_segment[TOGETHER];
                    float found[TOGETHER][2];
#pragma unroll
                    for (int which = 0; which < TOGETHER; ++which) {
                        // Without another step it is the same one again.
                        int of_chunk = step + rank + which * TEAM;
                        if (which && of_chunk >= steps) of_chunk = step + rank;
                        const unsigned char* const rows_of_step = there + of_chunk * STEP * PITCH;
                        keys.fetch(which, rows_of_step + numbers_place, rows_of_step + pairs_place, place);
                        of_segment[which] = chunk * CHUNK_STEPS + of_chunk;
                    }
                    query.score(keys, found);
#pragma unroll
                    for (int which = 0; which < TOGETHER; ++which) {
                        const int key = of_segment[which] * STEP + quad + 8 * place;
                        if (place < 2) scores[team][key] = place ? found[which][1] : found[which][0];
                    }
                }
            }
        }
        if (TEAM > 1)
            __syncthreads();
        else
            __syncwarp();
        Weights weight;
        weight.weigh(scores[team], min(past + 1 - first * STEP, count * STEP), factor, weights[warp]);
        const int byte = min(units_place * VALUE_TILES, WIDTH / 2 - VALUE_TILES);
        const int numbers_place = place * PITCH + of_head + byte;
        const int pairs_place = place * PITCH + pairs_of_head + 4 * (byte / (4 * GROUP_UNITS));
        Sums<VALUE_TILES> sums = {};
        for (int chunk = 0; chunk < chunks; ++chunk) {
            const unsigned char* const there = next_chunk(1, first + chunk * CHUNK_STEPS, first + count);
            const int steps = min(CHUNK_STEPS, count - chunk * CHUNK_STEPS);
            CodesOfValues values[2];
            values[0].fetch(there + numbers_place, there + pairs_place);
#pragma unroll
            for (int step = 0; step < CHUNK_STEPS; ++step) {
                if (step >= steps) break;
                const int next = min(step + 1, steps - 1) * STEP * PITCH;
                if (step + 1 < CHUNK_STEPS)
                    values[(step + 1) % 2].fetch(there + next + numbers_place, there + next + pairs_place);
                const int of_segment = chunk * CHUNK_STEPS + step;
                pair operand[2];
                Weights::read(operand, weights[warp], of_segment, place);
                if (weight.shrinks >> 2 * of_segment & 1)
                    sums.shrink(__shfl_sync(EVERY_LANE, weight.less, 2 * of_segment));
                sums.add(values[step % 2], operand, TEAM == 1 || rank == 0);
            }
        }
        running.add(sums, weight.highest, first == first_step, place);
    }
    if (TEAM > 1 && work.splits == 1) {  // one warp of a team knows the sum of its weights
        __shared__ float totals[HEADS];
        if (rank == 0 && lane == 0) totals[team] = running.total;
        __syncthreads();
        running.total = totals[team];
    }

    int columns[results_of(VALUE_TILES)];
#pragma unroll
    for (int number = 0; number < results_of(VALUE_TILES); ++number)
        columns[number] = column_of(number, units_place, place);
    finish(work, running, columns, out, out_pitch, partials, counters, heads);
}
