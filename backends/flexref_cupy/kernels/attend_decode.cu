// q (T, H D) -> out (T, H D): softmax(q k^T scale) v over the records of a row, for rows with one new token each.
//
// Law: scores, their exponentials' sum and the weighted sum of values are float32; an exponential is rounded to half
// before it is used, in the sum of exponentials too. Records are read as they lie; of 4-bit groups a number is the half
// nearest to code * scale + zero. The bits are those of attend_prefill.cu, APART, for the same token read in a prompt.
// So whatever is added up is added in the same order there: the numbers of a head in sets of 16 (`number_of`); the keys
// of a step by twos; steps within segments of SEGMENT_STEPS, against the highest score up to the step; segments one
// after the other. Where a product and a sum could be one instruction, the text says which it is.
// Forms: VALUES, halves, or CODES, 4-bit groups; WIDTH is D and a multiple of 16, GROUP a power of two or D itself.
// Block: one item, a split of a row's keys of at most `steps` times 16 of them, for HEADS heads, one each TEAM warps;
// or, of codes where `items` is none, a whole row. Which keys a split has follows from the row's own length. Rows of
// several splits leave maximum, sum and weighted values of each in `partials`; the last block of a row's heads to
// arrive, by `counters`, merges them in the order of the splits. An item of row -1 is padding, and a row with several
// new tokens is another kernel's: such blocks leave at once. No bit depends on HEADS and TEAM, nor on how the codes come.
// Of a head with several warps each scores some steps, and then adds up some of the values' numbers.
// Launch: (items * ceil(H / HEADS), 1, 1) blocks of 32 * HEADS * TEAM, or as many for every row; of codes with
// STAGES * STAGE_BYTES of shared memory.
//
// Example: 6 heads, HEADS 4, TEAM 1, one row with 700 tokens in its cache and a new one. Its 701 keys are 44 steps of
// 16. The host cuts them into 3 splits of `steps` = 16 (`Segments` in segments.py), and so into items (0, 0), (0, 1),
// (0, 2): keys 0 to 255, 256 to 511, and 512 to 700; of the last step, keys 688 to 703, the 3 that do not exist are read
// as key 700 and weigh nothing. 6 heads are 2 blocks of 4 warps an item, so 6 blocks run. Block 3 is item 1, heads 4 and
// 5; its other two warps write nothing. Each warp leaves its split's maximum, sum and weighted values in `partials`
// (item, head). Counter 0 counts the blocks of heads 0 to 3, counter 1 those of heads 4 and 5: whichever of blocks 1, 3
// and 5 comes third merges splits 0, 1, 2 of heads 4 and 5, writes them, and sets the counter back to 0. A row of up to
// 256 keys is one split: its block writes the result at once. A block that has the whole row takes its segments one
// after the other and merges them as it goes.
//
// A segment of codes is taken in two halves, so that no step waits for the one before it: all scores first, then, from
// the exponentials of all of them, the values. Meanwhile the next chunk of codes is on its way to shared memory, where a
// block's heads have the rows together. So is a segment of halves that a team shares, whose numbers come to registers; a
// warp alone takes halves step by step, keys and values, since those are so many bytes that the memory is busy anyway.
// A warp takes 16 keys at a time as the left operand of its tensor cores, its lanes in 8 quads of 4. For scores, quad n
// reads keys n and n + 8, each lane some of their numbers; the right operand is q in every column, so that all lanes of
// the quad get the score. For values, lane r of every quad reads keys 2 r, 2 r + 1, 2 r + 8 and 2 r + 9, each quad some
// of their numbers, and the right operand is the weights.

#ifndef FORM
#define FORM CODES
#define WIDTH 128
#define GROUP 64
#define HEADS 4
#define TEAM 1
#define CHUNK_STEPS 4
#define STAGES 2
#define MIN_BLOCKS 4
#endif

enum Form { VALUES, CODES };

constexpr bool IN_CODES = FORM == CODES;
constexpr int WARPS = HEADS * TEAM, THREADS = WARPS * WARP;
static_assert(IN_CODES || TEAM == 1 || HEADS == 1, "a barrier of halves' warps is one of a team");
constexpr int STEP = 16;  // keys at a time
constexpr int SEGMENT_STEPS = 16, SEGMENT_KEYS = STEP * SEGMENT_STEPS;
static_assert(WIDTH % 16 == 0 && WIDTH <= 128, "see above");

// A unit is 8 numbers of a head: a word of codes, or 4 words of halves.
constexpr int UNITS = WIDTH / 8, UNIT_WORDS = IN_CODES ? 1 : 4;
constexpr int SETS = WIDTH / 16;

// Of codes: units of a group, groups of a head, and bytes of a whole group that are a lane's for scores: a quad's lanes
// part the bytes of every group evenly. A head may end with a short group, of 16 numbers.
constexpr int GROUP_UNITS = IN_CODES ? GROUP / 8 : UNITS, GROUP_SETS = GROUP_UNITS / 2;
constexpr int GROUPS = (UNITS + GROUP_UNITS - 1) / GROUP_UNITS;
constexpr int PART_BYTES = GROUP_UNITS, PART_WORDS = PART_BYTES < 4 ? 1 : PART_BYTES / 4;
constexpr bool SHORT_GROUP = UNITS % GROUP_UNITS != 0;
static_assert(!SHORT_GROUP || UNITS % GROUP_UNITS == 2, "a short group is one set");
static_assert(GROUPS != 3 && GROUPS <= 4, "the pairs of a head are one load");

// Of values a warp's quads take some tiles, of two numbers each: of codes the two of a byte, of halves those of a word.
// VALUE_TILES of them lie side by side, and are a lane's, of each of its 4 keys.
constexpr int VALUE_PLACES = 8 * TEAM;

constexpr int power_of_two_from(int least) {
    int power = 1;
    while (power < least) power *= 2;
    return power;
}

constexpr int VALUE_UNITS = (UNITS + VALUE_PLACES - 1) / VALUE_PLACES;  // of halves
constexpr int VALUE_TILES =
    IN_CODES ? power_of_two_from((WIDTH / 2 + VALUE_PLACES - 1) / VALUE_PLACES) : 4 * VALUE_UNITS;
constexpr int RESULTS = VALUE_TILES < 4 ? 2 : VALUE_TILES / 2;  // numbers of the output that are a lane's
static_assert(!IN_CODES || (4 * GROUP_UNITS) % VALUE_TILES == 0, "a lane's values are of one group");

constexpr float NOTHING = -1.0f / 0.0f;

struct alignas(16) Row {
    int first_token, past, fresh, steps;
};

struct alignas(8) Item {
    int row, split;
};

// K or V of a head as a lane sees them: in the row's first record, its first unit and its first pair of scale and zero.
struct Source {
    const unsigned char *numbers, *pairs;
    unsigned record_bytes;
    int last_key;      // of the row; keys after it are read as this one, and count for nothing
    int shared;        // so many of the row's first keys are in the prefix, which begins
    integer distance;  // so many bytes from where the row's own records would

    __device__ __forceinline__ integer start(int key) const { return key < shared ? distance : 0; }

    __device__ __forceinline__ integer offset(int key) const {
        return static_cast<unsigned long long>(static_cast<unsigned>(min(key, last_key))) * record_bytes;
    }
};

template <int words> struct alignas(4 * words) Words {
    unsigned at[words];
};

template <int words> __device__ __forceinline__ void load(unsigned* target, const void* source) {
    const Words<words> found = *static_cast<const Words<words>*>(source);
#pragma unroll
    for (int word = 0; word < words; ++word) target[word] = found.at[word];
}

// Codes of a chunk of keys, or of values, of a block's heads lie in shared memory, for each key a row of numbers and of
// pairs. Rows are so far from each other that lanes that read at once have different banks, and they begin at multiples
// of 32 bytes: half a sector of the memory that is copied to the half of another one is fetched twice.
constexpr int CHUNK_KEYS = STEP * CHUNK_STEPS;
constexpr int NUMBERS_BYTES = IN_CODES ? HEADS * WIDTH / 2 : 16, PAIRS_BYTES = IN_CODES ? HEADS * GROUPS * 4 : 16;
constexpr int NUMBERS_PIECE = NUMBERS_BYTES % 16 ? 8 : 16;  // bytes of a copy
constexpr int PAIRS_PIECE = PAIRS_BYTES % 16 ? PAIRS_BYTES % 8 ? 4 : 8 : 16;

constexpr int PITCH = (NUMBERS_BYTES + PAIRS_BYTES + 31) / 64 * 64 + 32;
constexpr int STAGE_BYTES = CHUNK_KEYS * PITCH;
constexpr bool PREFETCHES = IN_CODES && HEADS == 1;  // blocks are few, and the memory is idle when they begin
constexpr int TOGETHER = CHUNK_STEPS >= 2 * TEAM ? 2 : 1;  // steps whose keys a warp multiplies at once
static_assert(CHUNK_STEPS % (TEAM * TOGETHER) == 0, "a team has its steps");

// The place in its head of number `which`, of four, that lane `place` of a quad brings to a set of 16: 0 and 1 stand
// side by side in one operand, 2 and 3 in the other. Halves are taken in their order. Of codes a set is a word of every
// lane's part of a group, its low nibbles or its high ones; a short group is one set.
__device__ __forceinline__ int number_of(int set, int place, int which) {
    if (!IN_CODES) return 16 * set + which / 2 * 8 + 2 * place + which % 2;
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

// The same of halves: every fourth eight of the keys' numbers.
struct HalvesOfKeys {
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
                operands[set][side] = to_pair(numbers[number_of(set, place, 2 * side)],
                                              numbers[number_of(set, place, 2 * side + 1)]);
    }

    // The products of q with the lane's two keys, of one step or of some.
    __device__ __forceinline__ void score(const HalvesOfKeys& keys, float (&result)[2]) const {
        float sums[4] = {};
        keys.for_each_set([&](int set, const pair(&tile)[4]) { multiply_tiles(sums, tile, operands[set]); });
        result[0] = sums[0], result[1] = sums[2];
    }

    template <int steps>
    __device__ __forceinline__ void score(const CodesOfKeys<steps>& keys, float (&result)[steps][2]) const {
        float sums[steps][4] = {};
        keys.for_each_set(
            [&](int step, int set, const pair(&tile)[4]) { multiply_tiles(sums[step], tile, operands[set]); });
#pragma unroll
        for (int step = 0; step < steps; ++step) result[step][0] = sums[step][0], result[step][1] = sums[step][2];
    }
};

// Which unit of a head is number `number` of those of place `place`, of VALUE_PLACES, of halves: a load is a unit.
__device__ __forceinline__ int unit_of(int place, int number) { return number * VALUE_PLACES + place; }

// What a lane reads of four keys for their values, of halves: some units of each.
struct HalvesOfValues {
    unsigned words[4][VALUE_UNITS * 4];

    __device__ __forceinline__ void fetch(const Source& source, int step, int units_place, int place) {
        const unsigned char* const first = source.numbers + source.start(step * STEP);
#pragma unroll
        for (int number = 0; number < 4; ++number) {
            const integer offset = source.offset(step * STEP + 2 * place + number % 2 + number / 2 * 8);
#pragma unroll
            for (int which = 0; which < VALUE_UNITS; ++which) {
                unsigned* const target = words[number] + 4 * which;
#pragma unroll
                for (int missing = 0; missing < 4; ++missing) target[missing] = 0;
                if (UNITS % (VALUE_PLACES * VALUE_UNITS) == 0 || unit_of(units_place, which) < UNITS)
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

// The same of codes: some bytes of each key, and the pair of their group.
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

// The weights of a segment's keys, of a warp's own: exponentials against the highest score up to their step. Of keys
// 2 r, 2 r + 1, 2 r + 8 and 2 r + 9 of a step two words lie side by side. Lanes 2 n and 2 n + 1 see to step n.
struct Weights {
    float highest;  // up to the segment's end
    float less;     // what there is before the lane's step shrinks to

    // `scores`: products of q and k; `end`: the first key that does not count; `highest`: up to here.
    __device__ __forceinline__ void weigh(const float* scores, int end, float factor, pair* weights) {
        const int lane = threadIdx.x % WARP;
        float found[8];
        load<4>(reinterpret_cast<unsigned*>(found), scores + 8 * lane);
        load<4>(reinterpret_cast<unsigned*>(found) + 4, scores + 8 * lane + 4);
        float most = NOTHING;
#pragma unroll
        for (int key = 0; key < 8; ++key) {
            found[key] = 8 * lane + key < end ? __fmul_rn(found[key], factor) : NOTHING;
            most = fmaxf(most, found[key]);
        }
        most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, 1));
        most = fmaxf(most, highest);
#pragma unroll
        for (int distance = 2; distance < WARP; distance *= 2)
            most = fmaxf(most, __shfl_up_sync(EVERY_LANE, most, distance));  // the first lanes get their own
        float before = __shfl_up_sync(EVERY_LANE, most, 2);
        if (lane < 2) before = highest;
        less = most > before ? power_of_two(before - most) : 1.0f;  // 0 for the first keys
        const float base = most == NOTHING ? 0.0f : most;
#pragma unroll
        for (int two = 0; two < 4; ++two)
            weights[lane / 2 * 8 + 2 * two + lane % 2] =
                to_pair(power_of_two(found[2 * two] - base), power_of_two(found[2 * two + 1] - base));
        highest = __shfl_sync(EVERY_LANE, most, WARP - 1);
    }

    // The same of one step, whose scores all lanes have, two each: of keys `key` and `key` + 8 of the row, whose first
    // key that does not count is `end`. `operand` gets what `add` takes; what there is before shrinks to the result.
    __device__ __forceinline__ float weigh_step(float (&found)[2], int key, int end, float factor, int place,
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

// What a warp knows after some of its keys. Of the four results of a tile, two are copies in other columns: not used.
struct Sums {
    float total, values[VALUE_TILES][4];

    // What there is shrinks to `less`.
    __device__ __forceinline__ void shrink(float less) {
        total = __fmul_rn(total, less);
#pragma unroll
        for (int tile = 0; tile < VALUE_TILES; ++tile) values[tile][0] *= less, values[tile][2] *= less;
    }

    // values += the lane's values, weighted, of keys 2 r and 2 r + 1, and 2 r + 8 and 2 r + 9.
    template <typename Values>
    __device__ __forceinline__ void add(const Values& share, const pair (&operand)[2], bool adds_total = true) {
#pragma unroll
        for (int both = 0; both < 2 && adds_total; ++both)  // every quad has the whole sum, each lane its part of it
            total = total + to_float(first_of(operand[both])) + to_float(second_of(operand[both]));
#pragma unroll
        for (int tile = 0; tile < VALUE_TILES; ++tile) {
            pair numbers[4];
            share.expand(tile, numbers);
            multiply_tiles(values[tile], numbers, operand);
        }
    }

    // Sums over all keys, and of the values those of the lane: a quad's lanes have the same, each takes some tiles.
    __device__ __forceinline__ void finish(float (&result)[RESULTS], int place) {
#pragma unroll
        for (int number = 0; number < RESULTS; ++number) {
            const int row = number % 2 * 2;
            float all[4];
#pragma unroll
            for (int lane = 0; lane < 4; ++lane) all[lane] = values[min(number / 2 * 4 + lane, VALUE_TILES - 1)][row];
            const float low = place & 1 ? all[1] : all[0], high = place & 1 ? all[3] : all[2];
            result[number] = place & 2 ? high : low;
        }
        total += __shfl_xor_sync(EVERY_LANE, total, 1);
        total += __shfl_xor_sync(EVERY_LANE, total, 2);
    }
};

// Where number `number` of a lane's results lies in its head; WIDTH or more if it is none.
__device__ __forceinline__ int column_of(int number, int units_place, int place) {
    const int tile = number / 2 * 4 + place, high = number % 2;
    if (!IN_CODES) return min(8 * unit_of(units_place, number / 2) + 2 * place + high, WIDTH);
    const int byte = units_place * VALUE_TILES + tile, group = byte / (4 * GROUP_UNITS);
    const int rest = UNITS - group * GROUP_UNITS;
    if (tile >= VALUE_TILES || byte >= WIDTH / 2) return WIDTH;
    return byte + 4 * (group + high) * GROUP_UNITS - (rest < GROUP_UNITS ? high * 4 * (GROUP_UNITS - rest) : 0);
}

// A split as a team leaves it: a head's numbers, then the highest score and the sum of weights.
constexpr int HIGHEST = WIDTH, TOTAL = HIGHEST + 1, PARTIAL = HIGHEST + 2;

// Each split is added to what there is of those before it.
__device__ __forceinline__ float merge(float (&result)[RESULTS], const int (&columns)[RESULTS], const float* parts,
                                       integer stride, int splits) {
    float highest = parts[HIGHEST], total = parts[TOTAL];
#pragma unroll
    for (int number = 0; number < RESULTS; ++number) result[number] = parts[min(columns[number], WIDTH - 1)];
#pragma unroll 4
    for (int split = 1; split < splits; ++split) {
        const float* const part = parts + split * stride;
        const Shares shares(highest, part[HIGHEST]);
        highest = shares.highest, total = shares.sum(total, part[TOTAL]);
#pragma unroll
        for (int number = 0; number < RESULTS; ++number)
            result[number] = shares.sum(result[number], part[min(columns[number], WIDTH - 1)]);
    }
    return total;
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
    attend_decode(const unsigned char* records, const Place* places, const Row* rows, const Item* items,
                  const half* q, integer q_pitch, half* out, integer out_pitch, float* partials, unsigned* counters,
                  integer heads, integer head_bytes, integer pairs_offset, integer record_bytes, integer factor_bits) {
    __shared__ alignas(16) half queries[HEADS][WIDTH];
    __shared__ alignas(16) float scores[HEADS][SEGMENT_KEYS];
    __shared__ alignas(16) pair weights[WARPS][SEGMENT_KEYS / 2];
    __shared__ unsigned arrived;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, place = lane % 4;
    const int rank = warp % TEAM, units_place = 8 * rank + quad;
    const unsigned blocks = static_cast<unsigned>(heads + HEADS - 1) / HEADS, item = blockIdx.x / blocks;
    const int asked = blockIdx.x % blocks * HEADS + warp / TEAM, head = min(asked, static_cast<int>(heads) - 1);
    const bool whole = IN_CODES && items == nullptr;  // an item is a row then
    const Item which = whole ? Item{static_cast<int>(item), 0} : items[item];
    if (which.row < 0) return;
    const int split = which.split;
    const Row row = rows[which.row];
    const Place where = places[which.row];
    if (whole && row.fresh != 1) return;
    const int steps = row.past / STEP + 1, split_steps = whole ? steps : row.steps;
    const int splits = (steps + split_steps - 1) / split_steps;
    const int first_step = split * split_steps, last_step = min(steps, first_step + split_steps);
    if constexpr (PREFETCHES) {
        constexpr int PIECES = WIDTH < 32 ? 1 : WIDTH / 32;
        const int first_key = first_step * STEP, end = min(last_step * STEP, row.past);
        const unsigned char* const first = records + head * head_bytes + threadIdx.x % PIECES * 16;
        for (int key = first_key + threadIdx.x / PIECES; key < end; key += THREADS / PIECES) {
            const integer start = key < where.shared ? where.prefix : where.own;
            const unsigned char* const from = first + start + key * record_bytes;
            prefetch(from), prefetch(from + record_bytes / 2);
        }
    }
    await_earlier();  // tables are no kernel's work

    const float factor = __int_as_float(static_cast<int>(factor_bits));
    const unsigned char* const cache = records + where.own;
    // A team reads its head's queries together: they are asked for first, and put in their place later.
    constexpr int TEAM_THREADS = TEAM * WARP, QUERIES_EACH = (WIDTH + TEAM_THREADS - 1) / TEAM_THREADS;
    half asked_queries[QUERIES_EACH];
#pragma unroll
    for (int number = 0; number < QUERIES_EACH; ++number) {
        const int column = threadIdx.x % TEAM_THREADS + number * TEAM_THREADS;
        if (column < WIDTH) asked_queries[number] = q[row.first_token * q_pitch + head * WIDTH + column];
    }
    const auto put_queries = [&] {
#pragma unroll
        for (int number = 0; number < QUERIES_EACH; ++number) {
            const int column = threadIdx.x % TEAM_THREADS + number * TEAM_THREADS;
            if (column < WIDTH) queries[warp / TEAM][column] = asked_queries[number];
        }
        if (TEAM > 1)
            __syncthreads();
        else
            __syncwarp();
    };

    Weights weight;
    weight.highest = NOTHING;
    Sums sums = {};
    float result[RESULTS], total = 0, highest = NOTHING;

    if constexpr (IN_CODES) {
        DYNAMIC_SHARED(stages);
        const int first_head = blockIdx.x % blocks * HEADS, row_heads = static_cast<int>(heads) - first_head;
        Carrier carrier;
        carrier.stages = stages, carrier.record_bytes = record_bytes, carrier.value_offset = record_bytes / 2;
        carrier.keys = row.past + 1, carrier.shared = static_cast<int>(where.shared);
        carrier.distance = where.prefix - where.own;
        carrier.begin(cache, first_head * head_bytes, pairs_offset + first_head * GROUPS * 4, row_heads,
                      first_step * STEP, last_step * STEP);
#pragma unroll
        for (int ahead = 0; ahead < STAGES - 1; ++ahead) carrier.start();
        put_queries();
        const int of_head = warp / TEAM * (NUMBERS_BYTES / HEADS);
        const int pairs_of_head = NUMBERS_BYTES + warp / TEAM * GROUPS * 4;
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
        for (int first = first_step; first < last_step; first += SEGMENT_STEPS) {
            const int count = min(SEGMENT_STEPS, last_step - first), chunks = (count + CHUNK_STEPS - 1) / CHUNK_STEPS;
            {
                Queries query;
                query.read(queries[warp / TEAM], place);
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
                            if (place < 2) scores[warp / TEAM][key] = place ? found[which][1] : found[which][0];
                        }
                    }
                }
            }
            if (TEAM > 1)
                __syncthreads();
            else
                __syncwarp();
            weight.weigh(scores[warp / TEAM], min(row.past + 1 - first * STEP, count * STEP), factor, weights[warp]);
            const unsigned shrinks = __ballot_sync(EVERY_LANE, weight.less != 1);  // two bits a step
            __syncwarp();
            const int byte = min(units_place * VALUE_TILES, WIDTH / 2 - VALUE_TILES);
            const int numbers_place = place * PITCH + of_head + byte;
            const int pairs_place = place * PITCH + pairs_of_head + 4 * (byte / (4 * GROUP_UNITS));
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
                    load<2>(operand, weights[warp] + 8 * of_segment + 2 * place);
                    if (shrinks >> 2 * of_segment & 1) sums.shrink(__shfl_sync(EVERY_LANE, weight.less, 2 * of_segment));
                    sums.add(values[step % 2], operand, TEAM == 1 || rank == 0);
                }
            }
            // Each segment is added to what there is of those before it.
            float of_segment[RESULTS];
            sums.finish(of_segment, place);
            const Shares shares(highest, weight.highest);
            const bool is_first = first == first_step;
#pragma unroll
            for (int number = 0; number < RESULTS; ++number)
                result[number] = is_first ? of_segment[number] : shares.sum(result[number], of_segment[number]);
            total = is_first ? sums.total : shares.sum(total, sums.total);
            highest = is_first ? weight.highest : shares.highest;
            weight.highest = NOTHING, sums = {};
        }
        if (TEAM > 1 && splits == 1) {  // one warp of a team knows the sum of its weights
            __shared__ float totals[HEADS];
            if (rank == 0 && lane == 0) totals[warp / TEAM] = total;
            __syncthreads();
            total = totals[warp / TEAM];
        }
    } else {
        const int key_distance = min(place, UNITS - 1) * 16;
        Source source;
        source.record_bytes = static_cast<unsigned>(record_bytes), source.last_key = row.past;
        source.shared = static_cast<int>(where.shared), source.distance = where.prefix - where.own;
        source.numbers = cache + head * head_bytes + key_distance;
        Source value_source = source;
        value_source.numbers += record_bytes / 2 + 16 * min(unit_of(units_place, 0), UNITS - 1) - key_distance;
        put_queries();
        const bool has_values = unit_of(8 * rank, 0) < UNITS;
        HalvesOfKeys keys;
        HalvesOfValues values;
        keys.fetch(source, first_step + rank, quad, place);
        if (has_values) values.fetch(value_source, first_step, units_place, place);
        Queries query;
        query.read(queries[warp / TEAM], place);
        if constexpr (TEAM == 1) {
            for (int step = first_step; step < last_step; ++step) {
                float found[2];
                query.score(keys, found);
                if (step + 1 < last_step) keys.fetch(source, step + 1, quad, place);
                pair operand[2];
                const float less = weight.weigh_step(found, step * STEP + quad, row.past + 1, factor, place, operand);
                if (less != 1) sums.shrink(less);
                sums.add(values, operand);
                if (step + 1 < last_step) values.fetch(value_source, step + 1, units_place, place);
            }
        } else {
            for (int first = first_step; first < last_step; first += SEGMENT_STEPS) {
                const int count = min(SEGMENT_STEPS, last_step - first), next = first + SEGMENT_STEPS;
                for (int step = rank; step < count; step += TEAM) {
                    float found[2];
                    query.score(keys, found);
                    if (step + TEAM < count) keys.fetch(source, first + step + TEAM, quad, place);
                    if (place < 2) scores[0][step * STEP + quad + 8 * place] = place ? found[1] : found[0];
                }
                if (next < last_step) keys.fetch(source, next + rank, quad, place);
                __syncthreads();
                weight.weigh(scores[0], min(row.past + 1 - first * STEP, count * STEP), factor, weights[warp]);
                __syncwarp();
                for (int step = 0; has_values && step < count; ++step) {
                    const float less = __shfl_sync(EVERY_LANE, weight.less, 2 * step);
                    pair operand[2];
                    load<2>(operand, weights[warp] + 8 * step + 2 * place);
                    if (less != 1) sums.shrink(less);
                    sums.add(values, operand);
                    if (first + step + 1 < last_step) values.fetch(value_source, first + step + 1, units_place, place);
                }
                if (next < last_step) __syncthreads();  // the scores were used
            }
        }
    }

    if constexpr (!IN_CODES) sums.finish(result, place), total = sums.total, highest = weight.highest;
    int columns[RESULTS];
#pragma unroll
    for (int number = 0; number < RESULTS; ++number) columns[number] = column_of(number, units_place, place);
    if (splits > 1) {
        float* const part = partials + (item * heads + head) * PARTIAL;
        if (asked == head) {
#pragma unroll
            for (int number = 0; number < RESULTS; ++number)
                if (columns[number] < WIDTH) part[columns[number]] = result[number];
            if (rank == 0 && lane == 0) part[HIGHEST] = highest, part[TOTAL] = total;
        }
        __syncthreads();
        if (threadIdx.x == 0) {  // for the whole block
            unsigned* const counter = counters + (item - split) * blocks + blockIdx.x % blocks;
            arrived = count_block(counter) + 1;
            if (arrived == splits) *counter = 0;
        }
        __syncthreads();
        if (arrived < splits) return;
        total = merge(result, columns, part - split * heads * PARTIAL, heads * PARTIAL, splits);
    }
    if (asked != head) return;
    half* const target = out + row.first_token * out_pitch + head * WIDTH;
    const float share = 1 / total;
#pragma unroll
    for (int number = 0; number < RESULTS; ++number)  // -0 becomes 0, whatever weighed nothing
        if (columns[number] < WIDTH) target[columns[number]] = to_half(__fmaf_rn(result[number], share, 0.0f));
}
