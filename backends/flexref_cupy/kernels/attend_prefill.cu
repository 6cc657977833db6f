// q (T, H D) -> out (T, H D): softmax(q k^T scale) v over the records of a row, causal, for rows with many new tokens.
//
// Law: scores, their exponentials' sum and the weighted sum of values are float32, products are those of the tensor
// cores: of halves; an exponential is rounded to half where it multiplies a value, and a number in a 4-bit group is
// the half nearest to code * scale + zero. A key after a query has no part in it; records after the last are not read.
// Forms: VALUES and CODES, halves or 4-bit groups of widths and group sizes known here (both multiples of 16);
// LOOSE_VALUES and LOOSE_CODES, any width up to WIDTH and any group size, number by number.
// Block: one head of one tile, up to 64 new tokens of a row, 16 a warp; it takes the keys KEYS at a time. A query's
// bits follow from its own place in its row: the keys at a time are the same wherever a tile begins.
// Launch: (tiles * H, 1, 1) blocks of THREADS.
//
// Shared memory holds KEYS keys and as many values as halves. Values are on their way to it while scores are computed,
// the next keys while the values are used: as bytes beside the arithmetic, or, of codes, in registers.
//
// APART: a token's bits are those of decode (attend_decode.cuh), which takes 16 keys at a time and cuts a row's keys
// into segments. So exponentials are against the highest score up to their 16 keys, and are rounded to half before they
// are summed too; sums start anew with every segment, of SEGMENT_KEYS keys from the row's first one, and segments are
// added to each other in their order. What the segments so far have given is kept in dynamic shared memory, of
// WIDTH * QUERIES floats, which a launch needs if any of its rows has more keys than a segment. LOOSE forms have no
// decode: with them one new token is a tile too, and the bits are the same as they are.

#ifndef FORM
#define FORM CODES
#define WIDTH 128
#define GROUP 64
#define APART 1
#endif

enum Form { VALUES, CODES, LOOSE_VALUES, LOOSE_CODES };

constexpr bool LOOSE = FORM == LOOSE_VALUES || FORM == LOOSE_CODES;
constexpr int QUERIES = 64, WARPS = 4, THREADS = WARPS * WARP;
constexpr int STEP = 16;           // keys of a product with values
constexpr int SEGMENT_KEYS = 256;  // as segments.py has it
constexpr int KEYS = WIDTH <= 128 ? 64 : 16;
constexpr bool HELD = WIDTH <= 128;  // queries stay in registers; wider ones in shared memory
constexpr int MIN_BLOCKS = WIDTH <= 64 ? 3 : 2;  // what registers and shared memory allow
static_assert(WIDTH % 16 == 0, "products take 16 numbers at a time");
static_assert(!APART || (!LOOSE && SEGMENT_KEYS % KEYS == 0), "see above");

// In shared memory, 8 rows' pieces of 16 bytes in one place lie in different banks: rows are an odd number of pieces
// long, or a row's pieces change places with its number, which takes no room.
constexpr bool TURNED = WIDTH % 64 == 0;
constexpr int PITCH = 2 * WIDTH + (TURNED ? 0 : 16);  // bytes of a row
constexpr int QUERY_ROWS = HELD ? 0 : QUERIES;  // else they are staged where keys and values lie later
constexpr int SHARED_ROWS = QUERY_ROWS + 2 * KEYS;
static_assert(SHARED_ROWS >= QUERIES, "the queries find room");

// The second eight of a row's pieces are turned once more: threads that write some of both have different banks.
__device__ __forceinline__ int piece_offset(int row, int piece) {
    return 16 * (TURNED ? piece ^ (row & 7) ^ (piece & 8 ? 6 : 0) : piece);
}

constexpr float NOTHING = -1.0f / 0.0f;

struct alignas(16) Row {
    int first_token, past, fresh, steps;
};

struct alignas(8) Tile {
    int row, first;
};

struct alignas(16) Run {
    pair at[4];  // 8 numbers
};

// K or V of a head as its row's records hold them: of a token, the numbers (or codes), and the pairs of scale and zero.
struct Source {
    const unsigned char *numbers, *pairs;
    unsigned record_bytes;
    int width, group_size, keys;  // no key from number `keys` on is read: it counts as zeros

    __device__ __forceinline__ unsigned long long offset(unsigned key) const {
        return static_cast<unsigned long long>(key) * record_bytes;
    }

    __device__ __forceinline__ Source moved(integer bytes) const {
        Source result = *this;
        result.numbers += bytes, result.pairs += bytes;
        return result;
    }

    __device__ __forceinline__ half loose_number(int key, int place) const {
        if (place >= width || key >= keys) return half{0};
        const unsigned char* const number = numbers + offset(key);
        if (FORM == LOOSE_VALUES) return reinterpret_cast<const half*>(number)[place];
        const int group = place / group_size, start = group * group_size, within = place - start;
        const int split = (min(group_size, width - start) + 1) / 2, high = within >= split;
        const unsigned both = number[group * ((group_size + 1) / 2) + within - high * split];
        pair code, none;
        codes_to_pairs(both >> 4 * high & 15u, code, none);
        const half* const stored = reinterpret_cast<const half*>(pairs + offset(key)) + 2 * group;
        return first_of(multiply_add(code, to_pair(stored[0], stored[0]), to_pair(stored[1], stored[1])));
    }
};

// Eight codes, in one nibble of each byte of two words, as numbers.
__device__ __forceinline__ Run expanded(unsigned first, unsigned second, unsigned stored) {
    const pair scale = permute_bytes(stored, stored, 0x1010u), zero = permute_bytes(stored, stored, 0x3232u);
    Run run;
    codes_to_pairs(first & 0x0f0f0f0fu, run.at[0], run.at[1]);
    codes_to_pairs(second & 0x0f0f0f0fu, run.at[2], run.at[3]);
#pragma unroll
    for (int both = 0; both < 4; ++both) run.at[both] = multiply_add(run.at[both], scale, zero);
    return run;
}

// A thread's share of KEYS keys or values on their way into shared memory. `begin` starts it, `finish` ends it; the
// place in shared memory must be free from `begin` on. A piece is 16 bytes of halves, or 8 bytes of codes.
constexpr int PIECES = FORM == CODES ? WIDTH / 16 : WIDTH / 8;  // of a key
constexpr int GROUP_NUMBERS = FORM == CODES ? GROUP : WIDTH, GROUP_PIECES = GROUP_NUMBERS / 16;
constexpr int THREAD_PIECES = (KEYS * PIECES + THREADS - 1) / THREADS;

struct Carrier {
    uint2 codes[FORM == CODES ? THREAD_PIECES : 1];
    unsigned stored[FORM == CODES ? THREAD_PIECES : 1];

    __device__ __forceinline__ void begin(const Source& source, int first_key, unsigned char* target) {
#pragma unroll
        for (int number = 0; !LOOSE && number < THREAD_PIECES; ++number) {
            const int index = number * THREADS + threadIdx.x, key = index / PIECES, piece = index % PIECES;
            if (KEYS * PIECES % THREADS && index >= KEYS * PIECES) continue;
            const bool there = first_key + key < source.keys;
            const unsigned long long offset = source.offset(first_key + key);
            if (FORM == CODES) {
                codes[number] = make_uint2(0, 0), stored[number] = 0;
                if (!there) continue;
                codes[number] = *reinterpret_cast<const uint2*>(source.numbers + offset + 8 * piece);
                stored[number] = reinterpret_cast<const unsigned*>(source.pairs + offset)[piece / GROUP_PIECES];
                continue;
            }
            unsigned char* const place = target + key * PITCH + piece_offset(key, piece);
            if (there)
                copy_beside(place, source.numbers + offset + 16 * piece);
            else
                *reinterpret_cast<Run*>(place) = Run{};
        }
        close_batch();
    }

    __device__ __forceinline__ void finish(const Source& source, int first_key, unsigned char* target) const {
        if constexpr (FORM == VALUES) {
            await_batches<0>();
        } else if constexpr (LOOSE) {
#pragma unroll 1
            for (int index = threadIdx.x; index < KEYS * WIDTH; index += THREADS) {
                const int key = index / WIDTH, number = index % WIDTH;
                half* const place = reinterpret_cast<half*>(target + key * PITCH + piece_offset(key, number / 8));
                place[number % 8] = source.loose_number(first_key + key, number);
            }
        } else {
#pragma unroll
            for (int number = 0; number < THREAD_PIECES; ++number) {
                const int index = number * THREADS + threadIdx.x, key = index / PIECES, piece = index % PIECES;
                if (KEYS * PIECES % THREADS && index >= KEYS * PIECES) continue;
                const int group = piece / GROUP_PIECES, rest = WIDTH - group * GROUP_NUMBERS;
                const int low = group * GROUP_PIECES + piece, split = (rest < GROUP_NUMBERS ? rest : GROUP_NUMBERS) / 16;
                unsigned char* const row = target + key * PITCH;
                const uint2 both = codes[number];
                *reinterpret_cast<Run*>(row + piece_offset(key, low)) = expanded(both.x, both.y, stored[number]);
                *reinterpret_cast<Run*>(row + piece_offset(key, low + split)) =
                    expanded(both.x >> 4, both.y >> 4, stored[number]);
            }
        }
    }
};

// Numbers of a head in 4-bit groups are not multiplied in their order, but in that in which attend_decode_codes.cu finds
// them (`number_of`): a set of 16 is a word of every lane's part of a group, a part a quarter of the group's bytes; a short
// group of 16 is one set. In shared memory sets of keys and of queries lie one after the other, two pieces each.
constexpr int PART_WORDS = GROUP_NUMBERS / 32, GROUP_SETS = GROUP_NUMBERS / 16;
constexpr int LONG_GROUPS = PART_WORDS ? WIDTH / GROUP_NUMBERS : 0;
constexpr int SHORT_GROUPS = PART_WORDS ? (WIDTH % GROUP_NUMBERS != 0) : WIDTH / 16;
static_assert(FORM != CODES || WIDTH == LONG_GROUPS * GROUP_NUMBERS + 16 * SHORT_GROUPS, "other groups are loose");

// A thread's share of the keys, in codes: of some keys one or two words of every part of a group, or a short group.
struct KeyCarrier {
    static constexpr int WORDS = PART_WORDS > 1 && KEYS * LONG_GROUPS * PART_WORDS >= 2 * THREADS ? 2 : 1;
    static constexpr int LONG_JOBS = LONG_GROUPS * PART_WORDS / WORDS, JOBS = LONG_JOBS + SHORT_GROUPS;
    static constexpr int THREAD_JOBS = (KEYS * JOBS + THREADS - 1) / THREADS;
    static constexpr bool EVEN = !LONG_JOBS || !SHORT_GROUPS;  // else warps, not lanes, have jobs of one kind

    struct alignas(4 * WORDS) Part {
        unsigned at[WORDS];
    };

    Part parts[THREAD_JOBS][4];
    unsigned stored[THREAD_JOBS];

    static_assert(THREADS % (EVEN ? JOBS : KEYS) == 0, "a thread's keys, or its jobs, are evenly far from each other");

    __device__ __forceinline__ static int key_of(int number) {
        return EVEN ? threadIdx.x / JOBS + number * (THREADS / JOBS) : threadIdx.x % KEYS;
    }

    __device__ __forceinline__ static int job_of(int number) {
        return EVEN ? threadIdx.x % JOBS : threadIdx.x / KEYS + number * (THREADS / KEYS);
    }

    __device__ __forceinline__ static bool is_there(int number) {
        return KEYS * JOBS % THREADS == 0 || (EVEN ? key_of(number) < KEYS : job_of(number) < JOBS);
    }

    __device__ __forceinline__ static bool is_long(int job) { return LONG_JOBS && (!SHORT_GROUPS || job < LONG_JOBS); }

    __device__ __forceinline__ static int group_of(int job) {
        return is_long(job) ? job * WORDS / PART_WORDS : job - LONG_JOBS + LONG_GROUPS;
    }

    __device__ __forceinline__ void begin(const Source& source, int first_key) {
#pragma unroll
        for (int number = 0; number < THREAD_JOBS; ++number) {
            const int key = key_of(number), job = job_of(number);
            if (!is_there(number)) continue;
            // Nobody sees what stands in the place of keys after the last one.
            const unsigned long long offset = source.offset(min(first_key + key, source.keys - 1));
            const unsigned char* const codes = source.numbers + offset + group_of(job) * GROUP_NUMBERS / 2;
            if (is_long(job)) {
#pragma unroll
                for (int part = 0; part < 4; ++part)
                    parts[number][part] = *reinterpret_cast<const Part*>(
                        codes + 4 * (part * PART_WORDS + job * WORDS % PART_WORDS));
            } else {
                const uint2 both = *reinterpret_cast<const uint2*>(codes);
                parts[number][0].at[0] = both.x, parts[number][1].at[0] = both.y;
            }
            stored[number] = reinterpret_cast<const unsigned*>(source.pairs + offset)[group_of(job)];
        }
    }

    __device__ __forceinline__ void finish(unsigned char* target) const {
#pragma unroll
        for (int number = 0; number < THREAD_JOBS; ++number) {
            const int key = key_of(number), job = job_of(number);
            if (!is_there(number)) continue;
            unsigned char* const row = target + key * PITCH;
            const pair scale = low_halves(stored[number], stored[number]), zero = high_halves(stored[number], stored[number]);
            if (is_long(job)) {
#pragma unroll
                for (int word = 0; word < WORDS; ++word) {
                    Run runs[4];
#pragma unroll
                    for (int part = 0; part < 4; ++part) {
                        const unsigned codes = parts[number][part].at[word];
                        numbers_of(codes, scale, zero, runs[0].at[part], runs[2].at[part]);
                        numbers_of(codes >> 8, scale, zero, runs[1].at[part], runs[3].at[part]);
                    }
                    const int first = piece_offset(key, 4 * (job * WORDS + word));
#pragma unroll
                    for (int piece = 0; piece < 4; ++piece)  // pieces 4 n to 4 n + 3 are turned alike
                        *reinterpret_cast<Run*>(row + (TURNED ? first ^ 16 * piece : first + 16 * piece)) = runs[piece];
                }
            } else {
                const unsigned first = parts[number][0].at[0], second = parts[number][1].at[0];
                const int piece = 2 * GROUP_SETS * LONG_GROUPS + 2 * (job - LONG_JOBS);
                *reinterpret_cast<Run*>(row + piece_offset(key, piece)) = expanded(first, second, stored[number]);
                *reinterpret_cast<Run*>(row + piece_offset(key, piece + 1)) =
                    expanded(first >> 4, second >> 4, stored[number]);
            }
        }
    }
};

// Eight numbers of a query, from number `start` of its head on, to their places among the sets.
__device__ __forceinline__ void put_query(unsigned char* row, int query, int start, const Run& run) {
    const int group = start / GROUP_NUMBERS, within = start - group * GROUP_NUMBERS;
    if (FORM != CODES || group >= LONG_GROUPS) {  // halves; and of a short group, the first eight and the others
        *reinterpret_cast<Run*>(row + piece_offset(query, start / 8)) = run;
        return;
    }
    const int high = within >= GROUP_NUMBERS / 2, first = (within - high * GROUP_NUMBERS / 2) / 4;
#pragma unroll
    for (int four = 0; four < 2; ++four) {
        const int part = (first + four) / max(PART_WORDS, 1), word = (first + four) % max(PART_WORDS, 1);
        const int piece = 2 * (group * GROUP_SETS + 2 * word + high);
        const pair left = run.at[2 * four], right = run.at[2 * four + 1];
        *reinterpret_cast<pair*>(row + piece_offset(query, piece) + 4 * part) = low_halves(left, right);
        *reinterpret_cast<pair*>(row + piece_offset(query, piece + 1) + 4 * part) = high_halves(left, right);
    }
}

// 16 queries of a warp: lane l has, of query l / 4 and of query l / 4 + 8, parts of everything.
struct Warp {
    const unsigned char* staged;
    pair queries[HELD ? WIDTH / 16 : 1][4];
    float scores[KEYS / 8][4], values[WIDTH / 8][4], highest[2], total[2];
    // APART, of every step: exponentials as halves, and what is there before it shrinks to.
    pair weights[APART ? KEYS / STEP : 1][4];
    float shrunk[APART ? KEYS / STEP : 1][2];

    __device__ __forceinline__ void read(int part, int lane) {
        load_matrices(queries[HELD ? part : 0], staged + lane % 16 * PITCH + piece_offset(lane, 2 * part | lane / 16));
    }

    __device__ __forceinline__ void start(const unsigned char* queries_at, int lane) {
        staged = queries_at;
#pragma unroll
        for (int part = 0; HELD && part < WIDTH / 16; ++part) read(part, lane);
        empty();
    }

    __device__ __forceinline__ void empty() {
#pragma unroll
        for (int tile = 0; tile < WIDTH / 8; ++tile)
            values[tile][0] = values[tile][1] = values[tile][2] = values[tile][3] = 0;
        highest[0] = highest[1] = NOTHING, total[0] = total[1] = 0;
    }

    // A lane has added up some keys of its queries; now it has them all.
    __device__ __forceinline__ void sum_total() {
#pragma unroll
        for (int query = 0; query < 2; ++query) {
            total[query] += __shfl_xor_sync(EVERY_LANE, total[query], 1);
            total[query] += __shfl_xor_sync(EVERY_LANE, total[query], 2);
        }
    }

    __device__ __forceinline__ void score(const unsigned char* keys, int lane) {
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; ++tile)
            scores[tile][0] = scores[tile][1] = scores[tile][2] = scores[tile][3] = 0;
        const unsigned char* const row = keys + (lane % 8 + lane / 16 * 8) * PITCH;
#pragma unroll
        for (int part = 0; part < WIDTH / 16; ++part) {
            if (!HELD) read(part, lane);
            const pair(&query)[4] = queries[HELD ? part : 0];
#pragma unroll
            for (int tile = 0; tile < KEYS / 8; tile += 2) {
                pair found[4];
                load_matrices(found, row + 8 * tile * PITCH + piece_offset(lane, 2 * part | lane / 8 % 2));
                const pair first[2] = {found[0], found[1]}, second[2] = {found[2], found[3]};
                multiply_tiles(scores[tile], query, first);
                multiply_tiles(scores[tile + 1], query, second);
            }
        }
    }

#if APART

    __device__ __forceinline__ void shrink(int step) {
        if (!__any_sync(EVERY_LANE, shrunk[step][0] != 1 || shrunk[step][1] != 1)) return;
#pragma unroll
        for (int tile = 0; tile < WIDTH / 8; ++tile)
#pragma unroll
            for (int place = 0; place < 4; ++place) values[tile][place] *= shrunk[step][place / 2];
    }

    // Scores become exponentials, step by step, against the highest up to the step. `visible`: how many of these keys
    // the lane's first query sees (the second sees 8 more); `all`: whether all queries of the warp see all.
    __device__ __forceinline__ void weigh(float factor, int visible, bool all, int lane) {
#pragma unroll
        for (int step = 0; step < KEYS / STEP; ++step) {
            float(&found)[2][4] = reinterpret_cast<float(&)[2][4]>(scores[2 * step]);
            float most[2] = {highest[0], highest[1]};
#pragma unroll
            for (int tile = 0; tile < 2; ++tile)
#pragma unroll
                for (int place = 0; place < 4; ++place) {
                    const int key = STEP * step + 8 * tile + 2 * (lane % 4) + place % 2;
                    found[tile][place] = __fmul_rn(found[tile][place], factor);
                    if (!all && key >= visible + place / 2 * 8) found[tile][place] = NOTHING;
                    most[place / 2] = fmaxf(most[place / 2], found[tile][place]);
                }
#pragma unroll
            for (int query = 0; query < 2; ++query) {
                most[query] = fmaxf(most[query], __shfl_xor_sync(EVERY_LANE, most[query], 1));
                most[query] = fmaxf(most[query], __shfl_xor_sync(EVERY_LANE, most[query], 2));
            }
#pragma unroll
            for (int query = 0; query < 2; ++query) {
                const float less = most[query] > highest[query] ? power_of_two(highest[query] - most[query]) : 1.0f;
                const float base = most[query] == NOTHING ? 0.0f : most[query];
                highest[query] = most[query], shrunk[step][query] = less, total[query] = __fmul_rn(total[query], less);
#pragma unroll
                for (int tile = 0; tile < 2; ++tile) {
                    const float first = power_of_two(found[tile][2 * query] - base);
                    const pair both = to_pair(first, power_of_two(found[tile][2 * query + 1] - base));
                    weights[step][2 * tile + query] = both;
                    total[query] = total[query] + to_float(first_of(both)) + to_float(second_of(both));
                }
            }
            if (step == 0) shrink(0);
        }
    }

    __device__ __forceinline__ void add(const unsigned char* shared_values, int lane) {
        const unsigned char* const row = shared_values + lane % 16 * PITCH;
#pragma unroll
        for (int step = 0; step < KEYS / STEP; ++step) {
            if (step) shrink(step);
#pragma unroll
            for (int tile = 0; tile < WIDTH / 8; tile += 2) {
                pair found[4];
                load_matrices_transposed(found, row + STEP * step * PITCH + piece_offset(lane, tile | lane / 16));
                const pair first[2] = {found[0], found[1]}, second[2] = {found[2], found[3]};
                multiply_tiles(values[tile], weights[step], first);
                multiply_tiles(values[tile + 1], weights[step], second);
            }
        }
    }

#else

    // Scores become exponentials against the highest so far; what there is shrinks to match. `visible`: how many of
    // these keys the lane's first query sees (the second sees 8 more); `all`: whether all queries of the warp see all.
    __device__ __forceinline__ void weigh(float factor, int visible, bool all, int lane) {
        float most[2] = {highest[0], highest[1]}, base[2];
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; ++tile)
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                const int key = 8 * tile + 2 * (lane % 4) + place % 2;
                scores[tile][place] *= factor;
                if (!all && key >= visible + place / 2 * 8) scores[tile][place] = NOTHING;
                most[place / 2] = fmaxf(most[place / 2], scores[tile][place]);
            }
#pragma unroll
        for (int query = 0; query < 2; ++query) {
            most[query] = fmaxf(most[query], __shfl_xor_sync(EVERY_LANE, most[query], 1));
            most[query] = fmaxf(most[query], __shfl_xor_sync(EVERY_LANE, most[query], 2));
            base[query] = most[query] == NOTHING ? 0.0f : most[query];
        }
        if (__any_sync(EVERY_LANE, most[0] > highest[0] || most[1] > highest[1])) {
#pragma unroll
            for (int query = 0; query < 2; ++query) {
                const float shrunk = most[query] > highest[query] ? power_of_two(highest[query] - most[query]) : 1.0f;
                total[query] *= shrunk, highest[query] = most[query];
#pragma unroll
                for (int tile = 0; tile < WIDTH / 8; ++tile)
                    values[tile][2 * query] *= shrunk, values[tile][2 * query + 1] *= shrunk;
            }
        }
#pragma unroll
        for (int tile = 0; tile < KEYS / 8; ++tile)
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                scores[tile][place] = power_of_two(scores[tile][place] - base[place / 2]);
                total[place / 2] += scores[tile][place];
            }
    }

    __device__ __forceinline__ void add(const unsigned char* shared_values, int lane) {
        const unsigned char* const row = shared_values + lane % 16 * PITCH;
#pragma unroll
        for (int part = 0; part < KEYS / 16; ++part) {
            const float(&left)[4] = scores[2 * part], (&right)[4] = scores[2 * part + 1];
            const pair weights[4] = {to_pair(left[0], left[1]), to_pair(left[2], left[3]), to_pair(right[0], right[1]),
                                     to_pair(right[2], right[3])};
#pragma unroll
            for (int tile = 0; tile < WIDTH / 8; tile += 2) {
                pair found[4];
                load_matrices_transposed(found, row + 16 * part * PITCH + piece_offset(lane, tile | lane / 16));
                const pair first[2] = {found[0], found[1]}, second[2] = {found[2], found[3]};
                multiply_tiles(values[tile], weights, first);
                multiply_tiles(values[tile + 1], weights, second);
            }
        }
    }

#endif
};

// What a warp's queries have of the segments before the present one; the values are in shared memory, a thread's own.
struct Kept {
    float number;  // the highest scores of a quad's two queries, then their totals, one a lane

    __device__ __forceinline__ float of_lane(int place) const {
        return __shfl_sync(EVERY_LANE, number, threadIdx.x % WARP & ~3 | place);
    }

    __device__ __forceinline__ static float& value(int number) {
        DYNAMIC_SHARED(kept_values);
        return reinterpret_cast<float*>(kept_values)[number * THREADS + threadIdx.x];
    }

    // To a warp's state of the segment from key `segment` on add what there is of those before. `position`: that of the
    // lane's first query; of one that sees no key of this segment, the sum is what it was.
    __device__ __forceinline__ void add_to(Warp& state, int segment, int position) const {
        state.sum_total();
        if (!segment) return;
#pragma unroll
        for (int query = 0; query < 2; ++query) {
            const bool seen = position + 8 * query >= segment;
            const float highest = of_lane(query), total = of_lane(2 + query);
            const Shares shares(highest, state.highest[query]);
            state.highest[query] = seen ? shares.highest : highest;
            state.total[query] = seen ? shares.sum(total, state.total[query]) : total;
#pragma unroll
            for (int part = 0; part < WIDTH / 8; ++part) {
#pragma unroll
                for (int place = 2 * query; place < 2 * query + 2; ++place) {
                    const float before = value(4 * part + place);
                    float& now = state.values[part][place];
                    now = seen ? shares.sum(before, now) : before;
                }
                if (part % 4 == 3) __syncwarp();  // keeps later loads here: they need registers
            }
        }
    }

    // A new segment begins.
    __device__ __forceinline__ void keep(Warp& state) {
        const bool second = threadIdx.x & 1;
        const float highest = second ? state.highest[1] : state.highest[0];
        number = threadIdx.x & 2 ? (second ? state.total[1] : state.total[0]) : highest;
#pragma unroll
        for (int part = 0; part < WIDTH / 8; ++part)
#pragma unroll
            for (int place = 0; place < 4; ++place) value(4 * part + place) = state.values[part][place];
        state.empty();
    }
};

// The tile's queries as halves in shared memory; zeros after the last one, and beyond a head's width.
__device__ __forceinline__ void stage(const half* q, integer pitch, int count, int width, bool aligned,
                                      unsigned char* target) {
    for (int index = threadIdx.x; index < QUERIES * WIDTH / 8; index += THREADS) {
        const int query = index / (WIDTH / 8), start = index % (WIDTH / 8) * 8;
        const half* const source = q + query * pitch + start;
        Run run = {};
        if (query < count && aligned && !LOOSE) {
            run = *reinterpret_cast<const Run*>(source);
        } else if (query < count) {
            half values[8] = {};
#pragma unroll
            for (int place = 0; place < 8; ++place)
                if (start + place < width) values[place] = source[place];
#pragma unroll
            for (int both = 0; both < 4; ++both) run.at[both] = to_pair(values[2 * both], values[2 * both + 1]);
        }
        put_query(target + query * PITCH, query, start, run);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    attend_prefill(const unsigned char* records, const Place* places, const Row* rows, const Tile* tiles,
                   const half* q, integer q_pitch, integer q_aligned, half* out, integer out_pitch,
                   integer out_aligned, integer heads, integer head_width, integer group_size, integer head_bytes,
                   integer head_groups, integer pairs_offset, integer record_bytes, integer factor_bits) {
    await_earlier();
    __shared__ alignas(16) unsigned char shared[SHARED_ROWS * PITCH];
    unsigned char* const shared_keys = shared + QUERY_ROWS * PITCH;
    unsigned char* const shared_values = shared_keys + KEYS * PITCH;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const Tile tile = tiles[blockIdx.x / static_cast<unsigned>(heads)];
    const int head = blockIdx.x % static_cast<unsigned>(heads);
    const Row row = rows[tile.row];
    const int count = min(QUERIES, row.fresh - tile.first), width = static_cast<int>(head_width);
    const int first_query = 16 * warp + lane / 4, position = row.past + tile.first + first_query;
    const int warp_last = row.past + tile.first + 16 * warp + 15;

    const Place* const where = places + tile.row;
    Source keys;
    keys.numbers = records + where->of_first_token() + head * head_bytes;
    keys.pairs = records + where->of_first_token() + pairs_offset + head * head_groups * 4;
    keys.record_bytes = static_cast<unsigned>(record_bytes), keys.width = width, keys.group_size = static_cast<int>(group_size);
    keys.keys = row.past + tile.first + count;
    Source values = keys.moved(record_bytes / 2);

    const integer token = row.first_token + tile.first;
    stage(q + token * q_pitch + head * head_width, q_pitch, count, width, q_aligned, shared);
    __syncthreads();
    Warp state;
    state.start(shared + 16 * warp * PITCH, lane);
    __syncthreads();

    Kept kept;
    Carrier carrier;
    KeyCarrier key_carrier;
    const auto begin_keys = [&](int first) {
        FORM == CODES ? key_carrier.begin(keys, first) : carrier.begin(keys, first, shared_keys);
    };
    begin_keys(0);
    for (int first = 0; first < keys.keys; first += KEYS) {
        FORM == CODES ? key_carrier.finish(shared_keys) : carrier.finish(keys, first, shared_keys);
        __syncthreads();  // the keys are there, and nobody uses the last values any more
        carrier.begin(values, first, shared_values);
        const bool visible = first <= warp_last;
        if (APART && visible && first && first % SEGMENT_KEYS == 0) {
            kept.add_to(state, first - SEGMENT_KEYS, position);
            kept.keep(state);
        }
        if (visible) {
            state.score(shared_keys, lane);
            const bool all = first + KEYS <= warp_last - 14;
            state.weigh(__int_as_float(static_cast<int>(factor_bits)), position + 1 - first, all, lane);
        }
        carrier.finish(values, first, shared_values);
        __syncthreads();  // the values are there, and nobody uses these keys any more
        if (first + KEYS == where->shared)  // from the prefix to the row's own records
            keys = keys.moved(where->own - where->prefix), values = values.moved(where->own - where->prefix);
        if (first + KEYS < keys.keys) begin_keys(first + KEYS);
        if (visible) state.add(shared_values, lane);
    }

    if (APART)
        kept.add_to(state, min(warp_last, keys.keys - 1) / SEGMENT_KEYS * SEGMENT_KEYS, position);
    else
        state.sum_total();
#pragma unroll
    for (int query = 0; query < 2; ++query) {
        if (first_query + 8 * query >= count) continue;
        const float share = 1 / state.total[query];
        half* const target = out + (token + first_query + 8 * query) * out_pitch + head * head_width;
#pragma unroll
        for (int part = 0; part < WIDTH / 8; ++part) {
            const int column = 8 * part + 2 * (lane % 4);
            const float first = state.values[part][2 * query], second = state.values[part][2 * query + 1];
            // Of APART -0 becomes 0, whatever weighed nothing.
            const pair both = APART ? to_pair(__fmaf_rn(first, share, 0.0f), __fmaf_rn(second, share, 0.0f))
                                    : to_pair(first * share, second * share);
            if (out_aligned && column + 1 < width) {
                *reinterpret_cast<pair*>(target + column) = both;
            } else {
                if (column < width) target[column] = first_of(both);
                if (column + 1 < width) target[column + 1] = second_of(both);
            }
        }
    }
}
