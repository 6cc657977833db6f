// q (T, H D) -> out (T, H D): softmax(q k^T scale) v over the records of a row, for rows with one new token each.
//
// Law: scores, their exponentials' sum and the weighted sum of values are float32; an exponential is rounded to half
// before it is used, in the sum of exponentials too. Records are read as they lie; of 4-bit groups a number is the half
// nearest to code * scale + zero. The bits are those of attend_prefill.cu, APART, for the same token read in a prompt.
// So whatever is added up is added in the same order there: the numbers of a head in sets of 16 (`number_of`); the keys
// of a step by twos; steps within segments of SEGMENT_STEPS, against the highest score up to the step; segments one
// after the other. Where a product and a sum could be one instruction, the text says which it is.
// Forms: VALUES, halves, or CODES, 4-bit groups; WIDTH is D and a multiple of 16, GROUP a power of two or D itself.
// Block: one item, a split of a row's keys of at most `steps` times 16 of them, for WARPS / TEAM heads, one each TEAM
// warps. Which keys a split has follows from the row's own length. Rows of several splits leave maximum, sum and
// weighted values of each in `partials`; the last block of a row's heads to arrive, by `counters`, merges them in the
// order of the splits. An item of row -1 is padding: its blocks leave at once. No bit depends on TEAM: of a head with
// several warps each scores some steps, and then adds up some of the values' numbers.
// Launch: (items * ceil(H / (WARPS / TEAM)), 1, 1) blocks of THREADS.
//
// Example: 6 heads, TEAM 1, one row with 700 tokens in its cache and a new one. Its 701 keys are 44 steps of 16. The
// host cuts them into 3 splits of `steps` = 16 (`Segments` in segments.py), and so into items (0, 0), (0, 1), (0, 2):
// keys 0 to 255, 256 to 511, and 512 to 700; of the last step, keys 688 to 703, the 3 that do not exist are read as key
// 700 and weigh nothing. 6 heads are 2 blocks of 4 warps an item, so 6 blocks run. Block 3 is item 1, heads 4 and 5;
// its other two warps do head 5 again and write nothing. Each warp leaves its split's maximum, sum and weighted values
// in `partials` (item, head). Counter 0 counts the blocks of heads 0 to 3, counter 1 those of heads 4 and 5: whichever
// of blocks 1, 3 and 5 comes third merges splits 0, 1, 2 of heads 4 and 5, writes them, and sets the counter back to 0.
// A row of up to 256 keys is one split: its block writes the result at once.
//
// A segment of codes is taken in two halves, so that no step waits for the one before it: all scores first, then, from
// the exponentials of all of them, the values. Meanwhile the next steps' codes are on their way to shared memory, where a
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
#define TEAM 1
#endif

enum Form { VALUES, CODES };

constexpr bool IN_CODES = FORM == CODES;
constexpr int MIN_BLOCKS = IN_CODES || WIDTH <= 64 ? 4 : 3;  // what registers allow
constexpr int WARPS = 4, THREADS = WARPS * WARP, HEADS = WARPS / TEAM;
constexpr int STEP = 16;  // keys at a time
constexpr int SEGMENT_STEPS = 16, SEGMENT_KEYS = STEP * SEGMENT_STEPS;
static_assert(WIDTH % 16 == 0 && WIDTH <= 128 && (TEAM == 1 || TEAM == WARPS), "see above");
static_assert(TEAM == 1 || !IN_CODES, "codes come for a whole block: there is nothing that a team would gain");

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

// Of values: the units of a lane, of each of its 4 keys.
constexpr int VALUE_PLACES = 8 * TEAM, VALUE_UNITS = (UNITS + VALUE_PLACES - 1) / VALUE_PLACES;
constexpr int RESULTS = 2 * VALUE_UNITS;  // numbers of the output that are a lane's
static_assert(GROUP_UNITS % VALUE_UNITS == 0, "a lane's values are of one group");

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

// What a lane reads of two keys for scores, of codes: its parts of all groups, and their pairs.
struct CodesOfKeys {
    unsigned words[2][GROUPS][PART_WORDS], pairs[2][GROUPS];

    __device__ __forceinline__ void fetch(const Source& source, int step, int quad, int place) {
        const integer start = source.start(step * STEP);
        const unsigned char *const first = source.numbers + start, *const first_pair = source.pairs + start;
#pragma unroll
        for (int number = 0; number < 2; ++number) {
            const integer offset = source.offset(step * STEP + quad + 8 * number);
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                const unsigned char* const part = first + offset + group * GROUP_UNITS * 4;
                const bool is_short = SHORT_GROUP && group == GROUPS - 1;
                if (PART_BYTES == 2 || is_short)
                    words[number][group][0] =
                        *reinterpret_cast<const unsigned short*>(part - place * (is_short ? PART_BYTES - 2 : 0));
                else
                    load<PART_WORDS>(words[number][group], part);
            }
            load<GROUPS>(pairs[number], first_pair + offset);
        }
    }

    // A left operand of every set of a group, in their order, to `use(set, tile)`.
    template <typename Use> __device__ __forceinline__ void for_each_set(Use use) const {
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            pair scale[2], zero[2];
#pragma unroll
            for (int key = 0; key < 2; ++key) {
                scale[key] = low_halves(pairs[key][group], pairs[key][group]);
                zero[key] = high_halves(pairs[key][group], pairs[key][group]);
            }
            if (PART_BYTES == 2 || (SHORT_GROUP && group == GROUPS - 1)) {
                pair tile[4];
#pragma unroll
                for (int key = 0; key < 2; ++key) {
                    const unsigned both = permute_bytes(words[key][group][0], 0, 0x4140u);  // bytes 0 and 1
                    numbers_of(both, scale[key], zero[key], tile[key], tile[2 + key]);
                }
                use(group * GROUP_SETS, tile);
                continue;
            }
#pragma unroll
            for (int word = 0; word < PART_WORDS; ++word) {
                pair low[4], high[4];
#pragma unroll
                for (int key = 0; key < 2; ++key) {
                    const unsigned codes = words[key][group][word];
                    numbers_of(codes, scale[key], zero[key], low[key], high[key]);
                    numbers_of(codes >> 8, scale[key], zero[key], low[2 + key], high[2 + key]);
                }
                use(group * GROUP_SETS + 2 * word, low);
                use(group * GROUP_SETS + 2 * word + 1, high);
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

template <bool in_codes> struct Chosen {
    typedef HalvesOfKeys Keys;
};
template <> struct Chosen<true> {
    typedef CodesOfKeys Keys;
};
typedef Chosen<IN_CODES>::Keys Keys;

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

    // The products of q with the lane's two keys.
    __device__ __forceinline__ void score(const Keys& keys, float (&result)[2]) const {
        float sums[4] = {};
        keys.for_each_set([&](int set, const pair(&tile)[4]) { multiply_tiles(sums, tile, operands[set]); });
        result[0] = sums[0], result[1] = sums[2];
    }
};

// Which unit of a head is number `number` of those of place `place`, of VALUE_PLACES: codes lie side by side for one
// load, of halves a load is a unit.
__device__ __forceinline__ int unit_of(int place, int number) {
    return IN_CODES ? place * VALUE_UNITS + number : number * VALUE_PLACES + place;
}

// What a lane reads of four keys for their values: some units of each, and the pair of their group.
struct Values {
    unsigned words[4][VALUE_UNITS * UNIT_WORDS], pairs[4];

    __device__ __forceinline__ void fetch(const Source& source, int step, int units_place, int place) {
        constexpr int LOAD_WORDS = IN_CODES ? VALUE_UNITS : 4, LOADS = VALUE_UNITS * UNIT_WORDS / LOAD_WORDS;
        const integer start = source.start(step * STEP);
        const unsigned char *const first = source.numbers + start, *const first_pair = source.pairs + start;
#pragma unroll
        for (int number = 0; number < 4; ++number) {
            const integer offset = source.offset(step * STEP + 2 * place + number % 2 + number / 2 * 8);
#pragma unroll
            for (int which = 0; which < LOADS; ++which) {
                unsigned* const target = words[number] + which * LOAD_WORDS;
#pragma unroll
                for (int missing = 0; missing < LOAD_WORDS; ++missing) target[missing] = 0;
                if (UNITS % (VALUE_PLACES * VALUE_UNITS) == 0 || unit_of(units_place, which) < UNITS)
                    load<LOAD_WORDS>(target, first + offset + which * VALUE_PLACES * 16);
            }
            if (IN_CODES) load<1>(pairs + number, first_pair + offset);
        }
    }

    // As left operands, a unit in four tiles: of each tile two numbers, of four keys.
    __device__ __forceinline__ void expand(int unit, pair (&tiles)[4][4]) const {
#pragma unroll
        for (int both = 0; both < 2; ++both) {  // keys 2 r and 2 r + 1, then the two that lie 8 further on
            const unsigned *a = words[2 * both] + unit * UNIT_WORDS, *b = words[2 * both + 1] + unit * UNIT_WORDS;
            const pair scale = low_halves(pairs[2 * both], pairs[2 * both + 1]);
            const pair zero = high_halves(pairs[2 * both], pairs[2 * both + 1]);
#pragma unroll
            for (int tile = 0; tile < 4; ++tile) {
                if constexpr (IN_CODES) {
                    const unsigned both_keys = tile < 2 ? low_halves(a[0], b[0]) : high_halves(a[0], b[0]);
                    const unsigned codes = both_keys >> tile % 2 * 8;
                    numbers_of(codes, scale, zero, tiles[tile][2 * both], tiles[tile][2 * both + 1]);
                } else {
                    tiles[tile][2 * both] = low_halves(a[tile], b[tile]);
                    tiles[tile][2 * both + 1] = high_halves(a[tile], b[tile]);
                }
            }
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
    float total, values[4 * VALUE_UNITS][4];

    // values += the lane's values, weighted, of keys 2 r and 2 r + 1, and 2 r + 8 and 2 r + 9; what there is shrinks to
    // `less` before.
    __device__ __forceinline__ void add(const Values& share, const pair (&operand)[2], float less) {
        if (less != 1) {
            total = __fmul_rn(total, less);
#pragma unroll
            for (int tile = 0; tile < 4 * VALUE_UNITS; ++tile) values[tile][0] *= less, values[tile][2] *= less;
        }
#pragma unroll
        for (int both = 0; both < 2; ++both)  // every quad has the whole sum, each lane its part of it
            total = total + to_float(first_of(operand[both])) + to_float(second_of(operand[both]));
#pragma unroll
        for (int unit = 0; unit < VALUE_UNITS; ++unit) {
            pair tiles[4][4];
            share.expand(unit, tiles);
#pragma unroll
            for (int tile = 0; tile < 4; ++tile) multiply_tiles(values[4 * unit + tile], tiles[tile], operand);
        }
    }

    // Sums over all keys, and of the values those of the lane: a quad's lanes have the same, each takes some tiles.
    __device__ __forceinline__ void finish(float (&result)[RESULTS], int place) {
#pragma unroll
        for (int number = 0; number < RESULTS; ++number) {
            const int tile = number / 2 * 4, row = number % 2 * 2;
            const float low = place & 1 ? values[tile + 1][row] : values[tile][row];
            const float high = place & 1 ? values[tile + 3][row] : values[tile + 2][row];
            result[number] = place & 2 ? high : low;
        }
        total += __shfl_xor_sync(EVERY_LANE, total, 1);
        total += __shfl_xor_sync(EVERY_LANE, total, 2);
    }
};

// Where number `number` of a lane's results lies in its head; WIDTH or more if it is none.
__device__ __forceinline__ int column_of(int number, int units_place, int place) {
    const int unit = unit_of(units_place, number / 2), high = number % 2;
    if (unit >= UNITS) return WIDTH;
    if (!IN_CODES) return 8 * unit + 2 * place + high;
    const int start = unit / GROUP_UNITS * GROUP_UNITS, rest = UNITS - start;
    return 8 * start + 4 * (unit - start) + place + high * 4 * (rest < GROUP_UNITS ? rest : GROUP_UNITS);
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

// A chunk of keys, or of values, in codes of a block's heads in shared memory: for each key a row of numbers and of pairs.
// Codes come so because one head's are but 64 bytes of a record, while those of a block's heads are whole lines. Rows are
// so far from each other that lanes that read at once have different banks.
constexpr int CHUNK_STEPS = 2, CHUNK_KEYS = STEP * CHUNK_STEPS;
constexpr int STAGES = COPIES_BESIDE ? 3 : 2;  // places for chunks; without such copies one more waits in registers
constexpr int NUMBERS_BYTES = IN_CODES ? HEADS * WIDTH / 2 : 16, PAIRS_BYTES = IN_CODES ? HEADS * GROUPS * 4 : 16;

constexpr int far_apart(int bytes, int rows) {
    return bytes * rows % 64 == 32 ? bytes : far_apart(bytes + 16, rows);
}

constexpr int KEY_PITCH = IN_CODES ? far_apart(NUMBERS_BYTES + PAIRS_BYTES, 1) : 16;
constexpr int VALUE_PITCH = IN_CODES ? far_apart(NUMBERS_BYTES + PAIRS_BYTES, 2) : 16;
constexpr int STAGE_BYTES = CHUNK_KEYS * (KEY_PITCH > VALUE_PITCH ? KEY_PITCH : VALUE_PITCH);

// A thread's share of chunks on their way: 16 bytes at a time.
template <int row_bytes> struct Pieces {
    static constexpr int ROW = row_bytes / 16, ALL = CHUNK_KEYS * ROW, COUNT = (ALL + THREADS - 1) / THREADS;
    Beside<16> under_way[COUNT];

    __device__ __forceinline__ static int key_of(int copy) { return (copy * THREADS + threadIdx.x) / ROW; }

    __device__ __forceinline__ static int place_of(int copy) { return (copy * THREADS + threadIdx.x) % ROW * 16; }

    // `limit`: bytes of a row that are there.
    __device__ __forceinline__ static bool is_copied(int copy, int limit) {
        return (ALL % THREADS == 0 || key_of(copy) < CHUNK_KEYS) && place_of(copy) < limit;
    }

    __device__ __forceinline__ void start(unsigned char* to, int pitch, const unsigned char* from, const Source& source,
                                          int first_key, int limit) {
#pragma unroll
        for (int copy = 0; copy < COUNT; ++copy)
            under_way[copy].start(to + key_of(copy) * pitch + place_of(copy),
                                  from + source.offset(first_key + key_of(copy)) + place_of(copy),
                                  is_copied(copy, limit));
    }

    __device__ __forceinline__ void arrive(unsigned char* to, int pitch, int limit) {
#pragma unroll
        for (int copy = 0; copy < COUNT; ++copy)
            under_way[copy].arrive(to + key_of(copy) * pitch + place_of(copy), is_copied(copy, limit));
    }
};

// A segment's chunks, first those of keys and then those of values, on their way to shared memory.
struct Carrier {
    unsigned char* stages;
    Source source;  // of the block's first head
    int first, chunks, numbers_limit, pairs_limit;
    integer value_offset;
    Pieces<NUMBERS_BYTES> numbers;
    Pieces<PAIRS_BYTES> pairs;

    __device__ __forceinline__ unsigned char* stage(int chunk) const { return stages + chunk % STAGES * STAGE_BYTES; }

    __device__ __forceinline__ int pitch(int chunk) const { return chunk < chunks ? KEY_PITCH : VALUE_PITCH; }

    __device__ __forceinline__ void start(int chunk) {
        if (chunk < 2 * chunks) {
            const int key = first + (chunk < chunks ? chunk : chunk - chunks) * CHUNK_KEYS;
            const integer moved = source.start(key) + (chunk < chunks ? 0 : value_offset);
            numbers.start(stage(chunk), pitch(chunk), source.numbers + moved, source, key, numbers_limit);
            pairs.start(stage(chunk) + NUMBERS_BYTES, pitch(chunk), source.pairs + moved, source, key, pairs_limit);
        }
        close_batch();
    }

    __device__ __forceinline__ void arrive(int chunk) {
        numbers.arrive(stage(chunk), pitch(chunk), numbers_limit);
        pairs.arrive(stage(chunk) + NUMBERS_BYTES, pitch(chunk), pairs_limit);
        await_batches<STAGES - 2>();
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    attend_decode(const unsigned char* records, const Place* places, const Row* rows, const Item* items,
                  const half* q, integer q_pitch, half* out, integer out_pitch, float* partials, unsigned* counters,
                  integer heads, integer head_bytes, integer pairs_offset, integer record_bytes, integer factor_bits) {
    __shared__ alignas(16) half queries[WARPS][WIDTH];
    __shared__ alignas(16) float scores[HEADS][SEGMENT_KEYS];
    __shared__ alignas(16) pair weights[WARPS][SEGMENT_KEYS / 2];
    __shared__ unsigned arrived;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, place = lane % 4;
    const int rank = warp % TEAM, units_place = 8 * rank + quad;
    const unsigned blocks = static_cast<unsigned>(heads + HEADS - 1) / HEADS, item = blockIdx.x / blocks;
    const int asked = blockIdx.x % blocks * HEADS + warp / TEAM, head = min(asked, static_cast<int>(heads) - 1);
    const Item which = items[item];
    if (which.row < 0) return;
    const int split = which.split;
    const Row row = rows[which.row];
    const Place where = places[which.row];
    await_earlier();  // tables are no kernel's work
    const int steps = row.past / STEP + 1, splits = (steps + row.steps - 1) / row.steps;
    const int first_step = split * row.steps, last_step = min(steps, first_step + row.steps);

    Source source;
    source.record_bytes = static_cast<unsigned>(record_bytes), source.last_key = row.past;
    source.shared = static_cast<int>(where.shared), source.distance = where.prefix - where.own;
    for (int column = lane; column < WIDTH; column += WARP)
        queries[warp][column] = q[row.first_token * q_pitch + head * WIDTH + column];
    __syncwarp();
    const float factor = __int_as_float(static_cast<int>(factor_bits));
    const unsigned char* const cache = records + where.own;
    const int value_unit = min(unit_of(units_place, 0), UNITS - 1);
    const int key_distance = IN_CODES ? place * PART_BYTES : min(place, UNITS - 1) * 16;
    const int value_distance = 4 * UNIT_WORDS * value_unit, value_pair = 4 * (value_unit / GROUP_UNITS);

    Weights weight;
    weight.highest = NOTHING;
    Sums sums = {};

    if constexpr (IN_CODES) {
        __shared__ alignas(16) unsigned char stages[STAGES * STAGE_BYTES];
        const int first_head = blockIdx.x % blocks * HEADS, row_heads = static_cast<int>(heads) - first_head;
        Carrier carrier;
        carrier.stages = stages, carrier.value_offset = record_bytes / 2, carrier.source = source;
        carrier.source.numbers = cache + first_head * head_bytes;
        carrier.source.pairs = cache + pairs_offset + first_head * GROUPS * 4;
        carrier.numbers_limit = row_heads * static_cast<int>(head_bytes), carrier.pairs_limit = row_heads * GROUPS * 4;
        // In shared memory all keys of a chunk are there.
        Source staged;
        staged.last_key = CHUNK_KEYS - 1, staged.shared = 0, staged.distance = 0;
        for (int first = first_step; first < last_step; first += SEGMENT_STEPS) {
            const int count = min(SEGMENT_STEPS, last_step - first), chunks = (count + CHUNK_STEPS - 1) / CHUNK_STEPS;
            carrier.first = first * STEP, carrier.chunks = chunks;
#pragma unroll
            for (int ahead = 0; ahead < STAGES - 1; ++ahead) carrier.start(ahead);
            {
                Queries query;
                query.read(queries[warp], place);
                for (int chunk = 0; chunk < chunks; ++chunk) {
                    carrier.arrive(chunk);
                    __syncthreads();  // the chunk is there, and nobody uses the last one any more
                    carrier.start(chunk + STAGES - 1);
                    staged.record_bytes = KEY_PITCH;
                    staged.numbers = carrier.stage(chunk) + warp * (NUMBERS_BYTES / HEADS) + key_distance;
                    staged.pairs = carrier.stage(chunk) + NUMBERS_BYTES + warp * GROUPS * 4;
#pragma unroll
                    for (int step = 0; step < CHUNK_STEPS; ++step) {
                        Keys keys;
                        float found[2];
                        keys.fetch(staged, step, quad, place);
                        query.score(keys, found);
                        const int key = (chunk * CHUNK_STEPS + step) * STEP + quad + 8 * place;
                        if (place < 2) scores[warp][key] = place ? found[1] : found[0];
                    }
                }
            }
            __syncwarp();
            weight.weigh(scores[warp], min(row.past + 1 - first * STEP, count * STEP), factor, weights[warp]);
            __syncwarp();
            for (int chunk = 0; chunk < chunks; ++chunk) {
                carrier.arrive(chunks + chunk);
                __syncthreads();
                carrier.start(chunks + chunk + STAGES - 1);
                staged.record_bytes = VALUE_PITCH;
                staged.numbers = carrier.stage(chunks + chunk) + warp * (NUMBERS_BYTES / HEADS) + value_distance;
                staged.pairs = carrier.stage(chunks + chunk) + NUMBERS_BYTES + warp * GROUPS * 4 + value_pair;
#pragma unroll
                for (int step = 0; step < CHUNK_STEPS; ++step) {
                    const int of_segment = chunk * CHUNK_STEPS + step;
                    if (step && of_segment >= count) continue;
                    Values values;
                    values.fetch(staged, step, units_place, place);
                    const float less = __shfl_sync(EVERY_LANE, weight.less, 2 * of_segment);
                    pair operand[2];
                    load<2>(operand, weights[warp] + 8 * of_segment + 2 * place);
                    sums.add(values, operand, less);
                }
            }
            if (first + SEGMENT_STEPS < last_step) __syncthreads();  // the last chunk was used, and the scores
        }
    } else {
        source.numbers = cache + head * head_bytes + key_distance;
        Source value_source = source;
        value_source.numbers += record_bytes / 2 + value_distance - key_distance;
        const bool has_values = unit_of(8 * rank, 0) < UNITS;
        Keys keys;
        Values values;
        keys.fetch(source, first_step + rank, quad, place);
        if (has_values) values.fetch(value_source, first_step, units_place, place);
        Queries query;
        query.read(queries[warp], place);
        if constexpr (TEAM == 1) {
            for (int step = first_step; step < last_step; ++step) {
                float found[2];
                query.score(keys, found);
                if (step + 1 < last_step) keys.fetch(source, step + 1, quad, place);
                pair operand[2];
                const float less = weight.weigh_step(found, step * STEP + quad, row.past + 1, factor, place, operand);
                sums.add(values, operand, less);
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
                    sums.add(values, operand, less);
                    if (first + step + 1 < last_step) values.fetch(value_source, first + step + 1, units_place, place);
                }
                if (next < last_step) __syncthreads();  // the scores were used
            }
        }
    }

    float result[RESULTS];
    int columns[RESULTS];
    sums.finish(result, place);
#pragma unroll
    for (int number = 0; number < RESULTS; ++number) columns[number] = column_of(number, units_place, place);
    float total = sums.total;
    if (splits > 1) {
        float* const part = partials + (item * heads + head) * PARTIAL;
        if (asked == head) {
#pragma unroll
            for (int number = 0; number < RESULTS; ++number)
                if (columns[number] < WIDTH) part[columns[number]] = result[number];
            if (rank == 0 && lane == 0) part[HIGHEST] = weight.highest, part[TOTAL] = total;
        }
        __threadfence();
        __syncthreads();
        unsigned* const counter = counters + (item - split) * blocks + blockIdx.x % blocks;
        if (threadIdx.x == 0) arrived = atomicAdd(counter, 1u) + 1;
        __syncthreads();
        if (arrived < splits) return;
        __threadfence();
        if (threadIdx.x == 0) *counter = 0;
        total = merge(result, columns, part - split * heads * PARTIAL, heads * PARTIAL, splits);
    }
    if (asked != head) return;
    half* const target = out + row.first_token * out_pitch + head * WIDTH;
    const float share = 1 / total;
#pragma unroll
    for (int number = 0; number < RESULTS; ++number)  // -0 becomes 0, whatever weighed nothing
        if (columns[number] < WIDTH) target[columns[number]] = to_half(__fmaf_rn(result[number], share, 0.0f));
}
