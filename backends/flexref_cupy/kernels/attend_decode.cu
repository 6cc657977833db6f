// q (T, H D) -> out (T, H D): softmax(q k^T scale) v over the records of a row, for rows with one new token each.
//
// Law: scores, their exponentials' sum and the weighted sum of values are float32; an exponential is rounded to half
// before it is used, in the sum of exponentials too. Records are read as they lie. Of K in 4-bit groups, q code is
// summed, and scale and zero are applied to a group's sum; of V a number is the half nearest to code * scale + zero.
// Forms: VALUES, halves, or CODES, 4-bit groups; WIDTH is D and a multiple of 16, GROUP too or D itself.
// Block: WARPS heads, one each warp, of one item: a split of a row's keys, at most `steps` times 16 of them. Which keys
// a split has follows from the row's own length. Rows of several splits leave maximum, sum and weighted values of each
// in `partials`; the last block of a row's heads to arrive, by `counters`, merges them in the order of the splits.
// Launch: (items * ceil(H / WARPS), 1, 1) blocks of THREADS. An item of row -1 is padding: its blocks leave at once.
//
// Example: 6 heads, one row with 700 tokens in its cache and a new one. Its 701 keys are 44 steps of 16. The host cuts
// them into 3 splits of `steps` = 15 (`Segments` in segments.py), and so into items (0, 0), (0, 1) and (0, 2): keys 0
// to 239, 240 to 479, and 480 to 700; of the last step, keys 688 to 703, the 3 that do not exist are read as key 700
// and weigh nothing. 6 heads are 2 blocks of 4 warps an item, so 6 blocks run. Block 3 is item 1, heads 4 and 5; its
// other two warps do head 5 again and write nothing. Each warp leaves its split's maximum, sum and weighted values in
// `partials` (item, head). Counter 0 counts the blocks of heads 0 to 3, counter 1 those of heads 4 and 5: whichever of
// blocks 1, 3 and 5 comes third merges splits 0, 1, 2 of heads 4 and 5, writes them, and sets the counter back to 0. A
// row of up to 256 keys is one split: its block writes the result at once.
//
// A warp takes 16 keys at a time as the left operand of its tensor cores, its lanes in 8 quads of 4. For scores, quad
// n reads keys n and n + 8, each lane some of their numbers; the right operand is q in every column, so that all lanes
// of the quad get the score. For values, lane r of every quad reads keys 2 r, 2 r + 1, 2 r + 8 and 2 r + 9, each quad
// some of their numbers, and the right operand is the weights. Sums do not care in which order numbers are taken.
//
// APART: the bits are those of attend_prefill.cu, APART too, for the same token read in a prompt. So whatever is added
// up is added in the same order there: the numbers of a head 16 at a time from the first one, for which lanes of a quad
// exchange what they read; the keys of a step by twos; steps within segments, which are the splits; segments one after
// the other. K in 4-bit groups is expanded as V is. Where a product and a sum could be one instruction, the text says
// which it is.

#ifndef FORM
#define FORM CODES
#define WIDTH 128
#define GROUP 64
#define APART 1
#endif

enum Form { VALUES, CODES };

constexpr bool IN_CODES = FORM == CODES;
constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int STEP = 16;  // keys at a time
constexpr int MIN_BLOCKS = IN_CODES || WIDTH <= 64 ? 4 : 3;  // what registers allow

// A unit is 8 numbers of a head: a word of codes, or 4 words of halves.
constexpr int UNITS = WIDTH / 8;
constexpr int UNIT_WORDS = IN_CODES ? 1 : 4;
constexpr int KEY_RUN = APART && IN_CODES ? 2 : 1;  // units that are not parted
constexpr int KEY_UNITS = (UNITS + 4 * KEY_RUN - 1) / (4 * KEY_RUN) * KEY_RUN;  // of a lane, of each of its 2 keys
constexpr int VALUE_UNITS = (UNITS + 7) / 8;  // of a lane, of each of its 4 values
constexpr int RESULTS = 2 * VALUE_UNITS;      // numbers of the output that are a lane's
constexpr int KEY_LOAD = !IN_CODES || UNITS % 16 == 0 ? 4 : UNITS % 8 == 0 ? 2 : KEY_RUN;  // words at a time, aligned
constexpr int VALUE_LOAD = IN_CODES ? VALUE_UNITS : 4;

// Of codes: units of a group, groups of a head, and among how many columns of q they are spread (see `Queries`).
constexpr int GROUP_UNITS = IN_CODES ? GROUP / 8 : UNITS;
constexpr int GROUPS = (UNITS + GROUP_UNITS - 1) / GROUP_UNITS;
constexpr int COLUMNS = GROUPS > 2 ? 4 : GROUPS;
constexpr int LANE_GROUPS = APART ? GROUPS : COLUMNS > 1 ? 2 : 1;
static_assert(!APART || GROUPS != 3, "the pairs of a head are one load");
static_assert(WIDTH % 16 == 0 && WIDTH <= 128 && GROUPS <= 4 && GROUP_UNITS % VALUE_UNITS == 0, "see above");

constexpr unsigned LOW_NIBBLES = 0x000f000fu, HIGH_NIBBLES = 0x00f000f0u;  // of bytes 0 and 2
constexpr unsigned TWICE_1024 = 0x64006400u;                               // | code: a half of value 1024 + code
constexpr unsigned TWICE_SIXTEENTH = 0x2c002c00u, TWICE_MINUS_64 = 0xd400d400u;
constexpr float CODE_UNIT = 1.0f / 16777216;  // the bits of a code alone are a half of value code / 2^24

constexpr float NOTHING = -1.0f / 0.0f;

// Of APART, an instruction of its own whatever follows.
__device__ __forceinline__ float product(float a, float b) { return APART ? __fmul_rn(a, b) : a * b; }

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
    int last_key;  // of the row; keys after it are read as this one, and count for nothing

    __device__ __forceinline__ void move(integer bytes) { numbers += bytes, pairs += bytes; }
};

template <int words> struct alignas(4 * words) Words {
    unsigned at[words];
};

template <int words> __device__ __forceinline__ void load(unsigned* target, const void* source) {
    const Words<words> found = *static_cast<const Words<words>*>(source);
#pragma unroll
    for (int word = 0; word < words; ++word) target[word] = found.at[word];
}

__device__ __forceinline__ pair low_halves(unsigned a, unsigned b) { return permute_bytes(a, b, 0x5410u); }

__device__ __forceinline__ pair high_halves(unsigned a, unsigned b) { return permute_bytes(a, b, 0x7632u); }

// Which unit of a head is number `number` of the `count` that belong to number `place` of `places`: codes lie side by
// side for one load, of halves a load is a unit.
__device__ __forceinline__ int unit_of(int place, int places, int number, int count) {
    return IN_CODES ? place * count + number : number * places + place;
}

// Where the first four numbers of a unit lie in a head, and the others: of codes, the low and the high nibbles.
__device__ __forceinline__ int low_numbers(int unit) {
    return IN_CODES ? unit / GROUP_UNITS * GROUP_UNITS * 8 + unit % GROUP_UNITS * 4 : 8 * unit;
}

__device__ __forceinline__ int high_numbers(int unit) {
    const int start = unit / GROUP_UNITS * GROUP_UNITS * 8, rest = WIDTH - start;
    return low_numbers(unit) + (IN_CODES ? (rest < GROUP_UNITS * 8 ? rest : GROUP_UNITS * 8) / 2 : 4);
}

// What a lane reads of 16 keys, or of 16 values: of some the numbers and, of codes, the pairs of its groups.
template <int keys, int units, int load_words, int groups> struct Share {
    unsigned words[keys][units * UNIT_WORDS], pairs[keys][groups];

    // `key`: the first one of 0 and 8, or of 0, 1, 8 and 9; `place`: the lane's in its quad, or its quad's.
    __device__ __forceinline__ void fetch(const Source& source, int key, int place) {
        constexpr int PLACES = keys == 2 ? 4 : 8;
#pragma unroll
        for (int number = 0; number < keys; ++number) {
            const unsigned which = min(key + (keys == 2 ? 8 * number : number % 2 + number / 2 * 8), source.last_key);
            const unsigned long long offset = static_cast<unsigned long long>(which) * source.record_bytes;
            const unsigned char *const first = source.numbers + offset, *const pair_of = source.pairs + offset;
#pragma unroll
            for (int word = 0; word < units * UNIT_WORDS; word += load_words) {
                const int unit = word / UNIT_WORDS, distance = unit_of(0, PLACES, unit, units) * 4 * UNIT_WORDS;
#pragma unroll
                for (int missing = 0; missing < load_words; ++missing) words[number][word + missing] = 0;
                if (UNITS % (PLACES * units) == 0 || unit_of(place, PLACES, unit, units) < UNITS)
                    load<load_words>(words[number] + word, first + distance);
            }
            if constexpr (IN_CODES && GROUPS % groups == 0) {
                load<groups>(pairs[number], pair_of);
            } else if constexpr (IN_CODES) {  // of three groups: a fourth meets zeros of q
                load<1>(pairs[number], pair_of);
                load<1>(pairs[number] + 1, pair_of + (place % 2 ? 0 : 4));
            }
        }
    }
};

typedef Share<2, KEY_UNITS, KEY_LOAD, LANE_GROUPS> Keys;
typedef Share<4, VALUE_UNITS, VALUE_LOAD, 1> Values;

#if APART

// The numbers of one of a lane's keys in their order: every lane of a quad reads some eights of them, and gets two of
// each eight. Of codes, eight bytes (2 words) are two eights, in their low and in their high nibbles.
template <int size> struct Ordered {
    static constexpr int COUNT = KEY_UNITS * UNIT_WORDS / size;  // eights, or eight bytes, of a lane
    unsigned words[COUNT][size];

    __device__ __forceinline__ Ordered(const unsigned (&read)[KEY_UNITS * UNIT_WORDS], int place) {
        const bool upper = place & 2, odd = place & 1;
#pragma unroll
        for (int number = 0; number < COUNT; ++number) {
            unsigned low[size / 2], high[size / 2];  // of the first two lanes, and of the last two
#pragma unroll
            for (int word = 0; word < size / 2; ++word) {
                const unsigned first = read[number * size + word], second = read[number * size + size / 2 + word];
                const unsigned taken = __shfl_xor_sync(EVERY_LANE, upper ? first : second, 2);
                low[word] = upper ? taken : first, high[word] = upper ? second : taken;
            }
            unsigned(&found)[size] = words[number];
            if constexpr (size == 2) {  // two bytes of lanes 0 and 2, then of lanes 1 and 3
                const unsigned first = low_halves(low[0], high[0]), second = high_halves(low[0], high[0]);
                const unsigned taken = __shfl_xor_sync(EVERY_LANE, odd ? first : second, 1);
                found[0] = odd ? taken : first, found[1] = odd ? second : taken;
            } else {  // two numbers of every lane
                const unsigned first = __shfl_xor_sync(EVERY_LANE, odd ? low[0] : low[1], 1);
                const unsigned second = __shfl_xor_sync(EVERY_LANE, odd ? high[0] : high[1], 1);
                found[0] = odd ? first : low[0], found[1] = odd ? low[1] : first;
                found[2] = odd ? second : high[0], found[3] = odd ? high[1] : second;
            }
        }
    }

    // The lane's two of the eight numbers from number 8 `eight` on.
    __device__ __forceinline__ pair two(int eight, const unsigned (&pairs)[LANE_GROUPS]) const {
        if constexpr (size == 4) return words[eight / 4][eight % 4];
        const int group = eight / GROUP_UNITS, within = eight % GROUP_UNITS, rest = UNITS - group * GROUP_UNITS;
        const int split = (rest < GROUP_UNITS ? rest : GROUP_UNITS) / 2, high = within >= split;
        const int bytes = group * (GROUP_UNITS / 2) + within - high * split, lane = bytes / COUNT;
        const unsigned codes = words[bytes % COUNT][lane % 2] >> 4 * high & 0x0f0f0f0fu;
        const pair number = subtract(permute_bytes(codes, 0x64646464u, lane < 2 ? 0x4140u : 0x4342u), TWICE_1024);
        const unsigned stored = pairs[group];
        return multiply_add(number, low_halves(stored, stored), high_halves(stored, stored));
    }
};

// q of the warp's head as right operands, the same numbers in every column.
struct Queries {
    pair operands[UNITS / 2][2];

    __device__ __forceinline__ void read(const half* numbers, int place) {
#pragma unroll
        for (int eight = 0; eight < UNITS; ++eight)
            operands[eight / 2][eight % 2] = reinterpret_cast<const pair*>(numbers)[4 * eight + place];
    }

    // The products of q with the lane's two keys.
    __device__ __forceinline__ void score(const Keys& keys, int place, float (&result)[2]) const {
        const Ordered<IN_CODES ? 2 : 4> first(keys.words[0], place), second(keys.words[1], place);
        float sums[4] = {};
#pragma unroll
        for (int part = 0; part < UNITS / 2; ++part) {
            const pair tile[4] = {first.two(2 * part, keys.pairs[0]), second.two(2 * part, keys.pairs[1]),
                                  first.two(2 * part + 1, keys.pairs[0]), second.two(2 * part + 1, keys.pairs[1])};
            multiply_tiles(sums, tile, operands[part]);
        }
        result[0] = sums[0], result[1] = sums[2];
    }
};

#else

// q of the warp's head as right operands. Of codes, column c holds the numbers of group c % COLUMNS and else zeros:
// so one product gives the sums of all groups, in lane r of a quad those of columns 2 r and 2 r + 1.
struct Queries {
    pair operands[KEY_UNITS][2][2];
    float sums[2];  // of the numbers of the lane's groups, in units of `CODE_UNIT`

    __device__ __forceinline__ void read(const half* numbers, const float (&group_sums)[GROUPS], int quad, int place) {
#pragma unroll
        for (int number = 0; number < KEY_UNITS; ++number) {
            const int unit = unit_of(place, 4, number, KEY_UNITS);
            const bool there = unit < UNITS && unit / GROUP_UNITS == quad % COLUMNS;
            const int starts[2] = {there ? low_numbers(unit) : 0, there ? high_numbers(unit) : 0};
#pragma unroll
            for (int part = 0; part < 2; ++part) {  // codes of bytes 0 and 2 are one operand, of bytes 1 and 3 another
                unsigned found[2];
                load<2>(found, numbers + starts[part]);
                const pair first = IN_CODES ? low_halves(found[0], found[1]) : found[0];
                const pair second = IN_CODES ? high_halves(found[0], found[1]) : found[1];
                operands[number][part][0] = there ? first : 0, operands[number][part][1] = there ? second : 0;
            }
        }
#pragma unroll
        for (int column = 0; column < 2; ++column) {
            sums[column] = 0;
#pragma unroll
            for (int group = 0; group < GROUPS; ++group)
                if ((2 * place + column) % COLUMNS == group) sums[column] = group_sums[group] * CODE_UNIT;
        }
    }

    // The products of q with the lane's two keys, of codes in units of `CODE_UNIT`.
    __device__ __forceinline__ void score(const Keys& keys, int, float (&result)[2]) const {
        float low[4] = {}, high[4] = {};
#pragma unroll
        for (int number = 0; number < KEY_UNITS; ++number) {
            const unsigned *a = keys.words[0] + number * UNIT_WORDS, *b = keys.words[1] + number * UNIT_WORDS;
            pair lows[4] = {a[0], b[0], IN_CODES ? a[0] >> 8 : a[1], IN_CODES ? b[0] >> 8 : b[1]};
            pair highs[4] = {lows[0], lows[1], lows[2], lows[3]};
#pragma unroll
            for (int which = 0; which < 4; ++which) {
                highs[which] = IN_CODES ? highs[which] & HIGH_NIBBLES : (which % 2 ? b : a)[2 + which / 2];
                lows[which] = IN_CODES ? lows[which] & LOW_NIBBLES : lows[which];
            }
            multiply_tiles(low, lows, operands[number][0]);
            multiply_tiles(high, highs, operands[number][1]);
        }
#pragma unroll
        for (int key = 0; key < 2; ++key) {
            result[key] = low[2 * key] + high[2 * key];
            if constexpr (IN_CODES) {
#pragma unroll
                for (int group = 0; group < LANE_GROUPS; ++group) {
                    const unsigned stored = keys.pairs[key][group];
                    const float sum = low[2 * key + group] + high[2 * key + group] * 0.0625f;
                    const float part = sum * to_float(first_of(stored)) + sums[group] * to_float(second_of(stored));
                    result[key] = group ? result[key] + part : part;
                }
                if (COLUMNS == 4) result[key] += __shfl_xor_sync(EVERY_LANE, result[key], 1);
            }
        }
    }
};

#endif

// The lane's values as left operands, a unit in four tiles: of each tile two numbers, of four keys.
__device__ __forceinline__ void expand(const Values& share, int unit, pair (&tiles)[4][4]) {
#pragma unroll
    for (int both = 0; both < 2; ++both) {  // keys 2 r and 2 r + 1, then the two that lie 8 further on
        const unsigned *a = share.words[2 * both] + unit * UNIT_WORDS, *b = share.words[2 * both + 1] + unit * UNIT_WORDS;
        const unsigned first = share.pairs[2 * both][0], second = share.pairs[2 * both + 1][0];
        const pair scale = low_halves(first, second), zero = high_halves(first, second);
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
            if constexpr (IN_CODES) {
                const unsigned codes = (tile < 2 ? low_halves(a[0], b[0]) : high_halves(a[0], b[0])) >> tile % 2 * 8;
                const pair low = subtract(masked_or(codes, LOW_NIBBLES, TWICE_1024), TWICE_1024);
                const pair high = multiply_add(masked_or(codes, HIGH_NIBBLES, TWICE_1024), TWICE_SIXTEENTH, TWICE_MINUS_64);
                tiles[tile][2 * both] = multiply_add(low, scale, zero);
                tiles[tile][2 * both + 1] = multiply_add(high, scale, zero);
            } else {
                tiles[tile][2 * both] = low_halves(a[tile], b[tile]);
                tiles[tile][2 * both + 1] = high_halves(a[tile], b[tile]);
            }
        }
    }
}

// What a warp knows after some of its keys. Of the four results of a tile, two are copies in other columns: not used.
struct Sums {
    float highest, total, values[4 * VALUE_UNITS][4];

    // The weights of the lane's two keys: exponentials against the highest score so far. What there is shrinks to match.
    __device__ __forceinline__ pair weigh(const float (&scores)[2]) {
        float most = fmaxf(scores[0], scores[1]);
#pragma unroll
        for (int distance = 4; distance < WARP; distance *= 2)
            most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, distance));
        if (most > highest) {
            const float factor = power_of_two(highest - most);  // 0 for the first keys
            total = product(total, factor);
#pragma unroll
            for (int tile = 0; tile < 4 * VALUE_UNITS; ++tile) values[tile][0] *= factor, values[tile][2] *= factor;
            highest = most;
        }
        const float base = highest == NOTHING ? 0.0f : highest;
        const pair weights = to_pair(power_of_two(scores[0] - base), power_of_two(scores[1] - base));
        if (!APART) total += to_float(first_of(weights)) + to_float(second_of(weights));
        return weights;
    }

    // values += the lane's values, weighted; `weights` are those of keys n and n + 8 in quad n.
    __device__ __forceinline__ void add(const Values& share, pair weights, int place) {
        const unsigned even = __shfl_sync(EVERY_LANE, weights, 8 * place);
        const unsigned odd = __shfl_sync(EVERY_LANE, weights, 8 * place + 4);
        const pair operand[2] = {low_halves(even, odd), high_halves(even, odd)};
#pragma unroll
        for (int both = 0; APART && both < 2; ++both)  // every quad has the whole sum, each lane its part of it
            total = total + to_float(first_of(operand[both])) + to_float(second_of(operand[both]));
#pragma unroll
        for (int unit = 0; unit < VALUE_UNITS; ++unit) {
            pair tiles[4][4];
            expand(share, unit, tiles);
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
#pragma unroll
        for (int distance = APART ? 1 : 4; distance < (APART ? 4 : WARP); distance *= 2)
            total += __shfl_xor_sync(EVERY_LANE, total, distance);
    }
};

// Where number `number` of a lane's results lies in its head; WIDTH or more if it is none.
__device__ __forceinline__ int column_of(int number, int quad, int place) {
    const int unit = unit_of(quad, 8, number / 2, VALUE_UNITS);
    if (unit >= UNITS) return WIDTH;
    if (IN_CODES) return (number % 2 ? high_numbers(unit) : low_numbers(unit)) + place;
    return 8 * unit + 2 * place + number % 2;
}

// A split as a warp leaves it: every lane's results, then the highest score and the sum of weights.
constexpr int HIGHEST = RESULTS * WARP, TOTAL = HIGHEST + 1, PARTIAL = HIGHEST + 2;

#if APART

// Each split is added to what there is of those before it.
__device__ __forceinline__ float merge(float (&result)[RESULTS], const float* parts, integer stride, int splits) {
    const int lane = threadIdx.x % WARP;
    float highest = parts[HIGHEST], total = parts[TOTAL];
#pragma unroll
    for (int number = 0; number < RESULTS; ++number) result[number] = parts[number * WARP + lane];
#pragma unroll 4
    for (int split = 1; split < splits; ++split) {
        const float* const part = parts + split * stride;
        const Shares shares(highest, part[HIGHEST]);
        highest = shares.highest, total = shares.sum(total, part[TOTAL]);
#pragma unroll
        for (int number = 0; number < RESULTS; ++number)
            result[number] = shares.sum(result[number], part[number * WARP + lane]);
    }
    return total;
}

#else

__device__ __forceinline__ float merge(float (&result)[RESULTS], const float* parts, integer stride, int splits) {
    const int lane = threadIdx.x % WARP;
    float highest = NOTHING, total = 0;
    for (int split = lane; split < splits; split += WARP) highest = fmaxf(highest, parts[split * stride + HIGHEST]);
    highest = warp_max(highest);
    const float base = highest == NOTHING ? 0.0f : highest;
#pragma unroll
    for (int number = 0; number < RESULTS; ++number) result[number] = 0;
#pragma unroll 4
    for (int split = 0; split < splits; ++split) {
        const float* const part = parts + split * stride;
        const float factor = power_of_two(part[HIGHEST] - base);
        total += factor * part[TOTAL];
#pragma unroll
        for (int number = 0; number < RESULTS; ++number) result[number] += factor * part[number * WARP + lane];
    }
    return total;
}

#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    attend_decode(const unsigned char* records, const Place* places, const Row* rows, const Item* items,
                  const half* q, integer q_pitch, half* out, integer out_pitch, float* partials, unsigned* counters,
                  integer heads, integer head_bytes, integer pairs_offset, integer record_bytes, integer factor_bits) {
    __shared__ alignas(16) half queries[WARPS][WIDTH];
    __shared__ unsigned arrived;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, place = lane % 4;
    const unsigned blocks = static_cast<unsigned>(heads + WARPS - 1) / WARPS, item = blockIdx.x / blocks;
    const int asked = blockIdx.x % blocks * WARPS + warp, number = min(asked, static_cast<int>(heads) - 1);
    const int split = items[item].split, row_number = items[item].row;
    if (row_number < 0) return;
    const Row row = rows[row_number];
    const int steps = row.past / STEP + 1, splits = (steps + row.steps - 1) / row.steps;
    const int first_step = split * row.steps, last_step = min(steps, first_step + row.steps);

    const Place* const where = places + row_number;
    const int shared = static_cast<int>(where->shared);
    const unsigned char* const cache = records + (first_step * STEP < shared ? where->prefix : where->own);
    const int key_unit = min(unit_of(place, 4, 0, KEY_UNITS), UNITS - 1);
    const int value_unit = min(unit_of(quad, 8, 0, VALUE_UNITS), UNITS - 1);
    Source source;
    source.record_bytes = static_cast<unsigned>(record_bytes), source.last_key = row.past;
    source.numbers = cache + number * head_bytes + 4 * UNIT_WORDS * key_unit;
    const int first_group = APART ? 0 : 2 * place % COLUMNS;
    source.pairs = cache + pairs_offset + 4 * (number * GROUPS + first_group);
    Source value_source = source;
    value_source.numbers += record_bytes / 2 + 4 * UNIT_WORDS * (value_unit - key_unit);
    value_source.pairs += record_bytes / 2 + 4 * (value_unit / GROUP_UNITS - first_group);
    Keys keys;
    Values values;
    keys.fetch(source, first_step * STEP + quad, place);
    values.fetch(value_source, first_step * STEP + 2 * place, quad);

    float group_sums[GROUPS] = {};
    for (int column = lane; column < WIDTH; column += WARP) {
        const half found = q[row.first_token * q_pitch + number * WIDTH + column];
        queries[warp][column] = found;
#pragma unroll
        for (int group = 0; group < GROUPS; ++group)
            group_sums[group] += column / (8 * GROUP_UNITS) == group ? to_float(found) : 0.0f;
    }
    Queries query;
#if APART
    __syncthreads();
    query.read(queries[warp], place);
#else
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) group_sums[group] = warp_sum(group_sums[group]);
    __syncthreads();
    query.read(queries[warp], group_sums, quad, place);
#endif

    const float factor = __int_as_float(static_cast<int>(factor_bits)) * (IN_CODES && !APART ? 1 / CODE_UNIT : 1);
    Sums sums = {};
    sums.highest = NOTHING;
    for (int step = first_step; step < last_step; ++step) {
        const bool more = step + 1 < last_step;
        const int key = step * STEP + quad;
        float scores[2];
        query.score(keys, place, scores);
        if (key - quad + STEP == shared) {  // from the prefix to the row's own records
            const integer bytes = where->own - where->prefix;
            source.move(bytes), value_source.move(bytes);
        }
        if (more) keys.fetch(source, key + STEP, place);
#pragma unroll
        for (int other = 0; other < 2; ++other)
            scores[other] = key + 8 * other <= source.last_key ? product(scores[other], factor) : NOTHING;
        const pair weights = sums.weigh(scores);
        sums.add(values, weights, place);
        if (more) values.fetch(value_source, (step + 1) * STEP + 2 * place, quad);
    }

    float result[RESULTS];
    sums.finish(result, place);
    float total = sums.total;
    if (splits > 1) {
        float* const part = partials + (item * heads + number) * PARTIAL;
        if (asked == number) {
#pragma unroll
            for (int value = 0; value < RESULTS; ++value) part[value * WARP + lane] = result[value];
            if (lane == 0) part[HIGHEST] = sums.highest, part[TOTAL] = total;
        }
        __threadfence();
        __syncthreads();
        unsigned* const counter = counters + (item - split) * blocks + blockIdx.x % blocks;
        if (threadIdx.x == 0) arrived = atomicAdd(counter, 1u) + 1;
        __syncthreads();
        if (arrived < splits) return;
        __threadfence();
        if (threadIdx.x == 0) *counter = 0;
        total = merge(result, part - split * heads * PARTIAL, heads * PARTIAL, splits);
    }
    if (asked != number) return;
    half* const target = out + row.first_token * out_pitch + number * WIDTH;
    const float share = 1 / total;
#pragma unroll
    for (int value = 0; value < RESULTS; ++value) {
        const int column = column_of(value, quad, place);
        // Of APART -0 becomes 0, whatever weighed nothing.
        const float mean = APART ? __fmaf_rn(result[value], share, 0.0f) : result[value] * share;
        if (column < WIDTH) target[column] = to_half(mean);
    }
}
