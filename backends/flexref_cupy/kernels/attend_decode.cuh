// What the kernels of decode attention share, whatever form records have. They are attend_decode_halves.cu,
// attend_decode_few.cu and attend_decode_codes.cu, which know how numbers of K and V come and are multiplied; here is what
// is common to them: q (T, H D) -> out (T, H D), softmax(q k^T scale) v over the records of a row, for rows with one new
// token each.
//
// Law: scores, their exponentials' sum and the weighted sum of values are float32; an exponential is rounded to half
// before it is used, in the sum of exponentials too. The bits are those of attend_prefill.cu, APART, for the same token
// read in a prompt. So whatever is added up is added in the same order there: the numbers of a head in sets of 16; the
// keys of a step by twos; steps within segments of SEGMENT_STEPS, against the highest score up to the step; segments
// one after the other. Where a product and a sum could be one instruction, the text says which it is.
// Forms: WIDTH is D and a multiple of 16.
// Block: one item, a split of a row's keys of at most `steps` times 16 of them, for HEADS heads, one each TEAM warps;
// or, where `items` is none, a whole row. Which keys a split has follows from the row's own length. Rows of several
// splits leave maximum, sum and weighted values of each in `partials`; the last block of a row's heads to arrive, by
// `counters`, merges them in the order of the splits. An item of row -1 is padding, and a row with several new tokens is
// another kernel's: such blocks leave at once. No bit depends on HEADS and TEAM, nor on how records come.
// Of a head with several warps each scores some steps, and then adds up some of the values' numbers.
// Launch: (items * ceil(H / HEADS), 1, 1) blocks of 32 * HEADS * TEAM, or as many for every row, with
// STAGES * STAGE_BYTES of shared memory, none where STAGES is 0.
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
// Where records come to shared memory, a chunk of CHUNK_STEPS at a time, a segment is taken in two halves, so that no step
// waits for the one before it: all scores first, then, from the exponentials of all of them, the values. Meanwhile the
// next chunks are on their way to one of STAGES places, where a block's heads have the rows together.

constexpr int WARPS = HEADS * TEAM, THREADS = WARPS * WARP;
constexpr int STEP = 16;  // keys at a time
constexpr int SEGMENT_STEPS = 16, SEGMENT_KEYS = STEP * SEGMENT_STEPS;
static_assert(WIDTH % 16 == 0 && WIDTH <= 128, "see above");

constexpr int CHUNK_KEYS = STEP * CHUNK_STEPS;
constexpr int TOGETHER = CHUNK_STEPS >= 2 * TEAM ? 2 : 1;  // steps whose keys a warp multiplies at once

constexpr float NOTHING = -1.0f / 0.0f;

constexpr int power_of_two_from(int least) {
    int power = 1;
    while (power < least) power *= 2;
    return power;
}

// From one key's row in shared memory to the next, of a block's heads. Rows are so far from each other that lanes that
// read at once have different banks, and they begin at multiples of 32 bytes: half a sector of the memory that is copied
// to the half of another one is fetched twice.
constexpr int pitch_of(int row_bytes) { return (row_bytes + 31) / 64 * 64 + 32; }

struct alignas(16) Row {
    int first_token, past, fresh, steps;
};

struct alignas(8) Item {
    int row, split;
};

template <int words> struct alignas(4 * words) Words {
    unsigned at[words];
};

template <int words> __device__ __forceinline__ void load(unsigned* target, const void* source) {
    const Words<words> found = *static_cast<const Words<words>*>(source);
#pragma unroll
    for (int word = 0; word < words; ++word) target[word] = found.at[word];
}

// What a block works on: some heads of a row, and of its keys those of steps `first_step` to `last_step`.
struct Work {
    Row row;
    Place where;
    unsigned item, blocks;  // blocks: those that an item's heads are
    int split, splits, first_step, last_step;
    int first_head, asked, head;  // the block's first head; the warp's, and the last one if that does not exist

    // False if there is nothing for the block to do. Only tables are read, which no kernel writes.
    __device__ __forceinline__ bool find(const Place* places, const Row* rows, const Item* items, int heads) {
        blocks = static_cast<unsigned>(heads + HEADS - 1) / HEADS, item = blockIdx.x / blocks;
        first_head = blockIdx.x % blocks * HEADS;
        asked = first_head + threadIdx.x / WARP / TEAM, head = min(asked, heads - 1);
        const bool whole = items == nullptr;  // an item is a row then
        const Item which = whole ? Item{static_cast<int>(item), 0} : items[item];
        if (which.row < 0) return false;
        split = which.split, row = rows[which.row], where = places[which.row];
        if (whole && row.fresh != 1) return false;
        const int steps = row.past / STEP + 1, split_steps = whole ? steps : row.steps;
        splits = (steps + split_steps - 1) / split_steps;
        first_step = split * split_steps, last_step = min(steps, first_step + split_steps);
        return true;
    }
};

// Queries of a team's head: they are asked for first, and put in their place in shared memory later.
struct AskedQueries {
    static constexpr int TEAM_THREADS = TEAM * WARP, EACH = (WIDTH + TEAM_THREADS - 1) / TEAM_THREADS;
    half numbers[EACH];

    __device__ __forceinline__ void ask(const half* q, integer q_pitch, const Work& work) {
#pragma unroll
        for (int number = 0; number < EACH; ++number) {
            const int column = threadIdx.x % TEAM_THREADS + number * TEAM_THREADS;
            if (column < WIDTH) numbers[number] = q[work.row.first_token * q_pitch + work.head * WIDTH + column];
        }
    }

    __device__ __forceinline__ void put(half* queries) const {
#pragma unroll
        for (int number = 0; number < EACH; ++number) {
            const int column = threadIdx.x % TEAM_THREADS + number * TEAM_THREADS;
            if (column < WIDTH) queries[column] = numbers[number];
        }
        if (TEAM > 1)
            __syncthreads();
        else
            __syncwarp();
    }
};

// The weights of a segment's keys, of a warp's own: exponentials against the highest score up to their step. Of keys
// 2 r, 2 r + 1, 2 r + 8 and 2 r + 9 of a step two words lie side by side. Lanes 2 n and 2 n + 1 see to step n.
struct Weights {
    float highest;     // up to the segment's end
    float less;        // what there is before the lane's step shrinks to
    unsigned shrinks;  // two bits a step: whether it shrinks there

    // `scores`: products of q and k; `end`: the first key that does not count.
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
#pragma unroll
        for (int distance = 2; distance < WARP; distance *= 2)
            most = fmaxf(most, __shfl_up_sync(EVERY_LANE, most, distance));  // the first lanes get their own
        float before = __shfl_up_sync(EVERY_LANE, most, 2);
        if (lane < 2) before = NOTHING;
        less = most > before ? power_of_two(before - most) : 1.0f;  // 0 for the first keys
        const float base = most == NOTHING ? 0.0f : most;
#pragma unroll
        for (int two = 0; two < 4; ++two)
            weights[lane / 2 * 8 + 2 * two + lane % 2] =
                to_pair(power_of_two(found[2 * two] - base), power_of_two(found[2 * two + 1] - base));
        highest = __shfl_sync(EVERY_LANE, most, WARP - 1);
        shrinks = __ballot_sync(EVERY_LANE, less != 1);
        __syncwarp();
    }

    // Of a step: the right operand of its keys.
    __device__ __forceinline__ static void read(pair (&operand)[2], const pair* weights, int step, int place) {
        load<2>(operand, weights + 8 * step + 2 * place);
    }
};

// Numbers of the output that are a lane's, of so many tiles of 16 that its warp adds up.
constexpr int results_of(int tiles) { return (tiles + 3) / 4 * 2; }

// What a warp knows after some of a segment's keys. Of the four results of a tile, two are copies in other columns: not
// used.
template <int TILES> struct Sums {
    static constexpr int RESULTS = results_of(TILES);
    float total, values[TILES][4];

    // What there is shrinks to `less`.
    __device__ __forceinline__ void shrink(float less) {
        total = __fmul_rn(total, less);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) values[tile][0] *= less, values[tile][2] *= less;
    }

    // The weights of a step's keys, those of the right operand, are added to their sum.
    __device__ __forceinline__ void add_weights(const pair (&operand)[2]) {
#pragma unroll
        for (int both = 0; both < 2; ++both)  // every quad has the whole sum, each lane its part of it
            total = total + to_float(first_of(operand[both])) + to_float(second_of(operand[both]));
    }

    // values += the lane's values, weighted, of keys 2 r and 2 r + 1, and 2 r + 8 and 2 r + 9: left operands, which lie
    // ready, or which `share` makes one by one.
    __device__ __forceinline__ void add(const pair (&numbers)[TILES][4], const pair (&operand)[2]) {
        add_weights(operand);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) multiply_tiles(values[tile], numbers[tile], operand);
    }

    template <typename Share>
    __device__ __forceinline__ void add(const Share& share, const pair (&operand)[2], bool adds_weights = true) {
        if (adds_weights) add_weights(operand);
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
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
            for (int lane = 0; lane < 4; ++lane) all[lane] = values[min(number / 2 * 4 + lane, TILES - 1)][row];
            const float low = place & 1 ? all[1] : all[0], high = place & 1 ? all[3] : all[2];
            result[number] = place & 2 ? high : low;
        }
        total += __shfl_xor_sync(EVERY_LANE, total, 1);
        total += __shfl_xor_sync(EVERY_LANE, total, 2);
    }
};

// What a warp knows after some of its segments.
template <int TILES> struct Running {
    static constexpr int RESULTS = results_of(TILES);
    float result[RESULTS], total = 0, highest = NOTHING;

    // A segment is added to what there is of those before it.
    __device__ __forceinline__ void add(Sums<TILES>& sums, float segment_highest, bool is_first, int place) {
        float of_segment[RESULTS];
        sums.finish(of_segment, place);
        const Shares shares(highest, segment_highest);
#pragma unroll
        for (int number = 0; number < RESULTS; ++number)
            result[number] = is_first ? of_segment[number] : shares.sum(result[number], of_segment[number]);
        total = is_first ? sums.total : shares.sum(total, sums.total);
        highest = is_first ? segment_highest : shares.highest;
    }
};

// A split as a team leaves it: a head's numbers, then the highest score and the sum of weights.
constexpr int HIGHEST = WIDTH, TOTAL = HIGHEST + 1, PARTIAL = HIGHEST + 2;

// Each split is added to what there is of those before it; the sum of weights.
template <int RESULTS>
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

// Whether a block is the last of its row's heads to come; then it sees what the others wrote.
__device__ __forceinline__ bool comes_last(const Work& work, unsigned* counters) {
    __shared__ unsigned arrived;
    __syncthreads();
    if (threadIdx.x == 0) {  // for the whole block
        unsigned* const counter = counters + (work.item - work.split) * work.blocks + blockIdx.x % work.blocks;
        arrived = count_block(counter) + 1;
        if (arrived == work.splits) *counter = 0;
    }
    __syncthreads();
    return arrived == work.splits;
}

// Writes what a block has of its heads, `columns` of them each lane, to `out`; or, of a row of several splits, leaves it
// in `partials`, and if it is the last to come, merges them all and writes them.
template <int TILES>
__device__ __forceinline__ void finish(const Work& work, Running<TILES>& running, const int (&columns)[results_of(TILES)],
                                       half* out, integer out_pitch, float* partials, unsigned* counters,
                                       integer heads) {
    constexpr int RESULTS = results_of(TILES);
    const int lane = threadIdx.x % WARP, rank = threadIdx.x / WARP % TEAM;
    float total = running.total;
    if (work.splits > 1) {
        float* const part = partials + (work.item * heads + work.head) * PARTIAL;
        if (work.asked == work.head) {
#pragma unroll
            for (int number = 0; number < RESULTS; ++number)
                if (columns[number] < WIDTH) part[columns[number]] = running.result[number];
            if (rank == 0 && lane == 0) part[HIGHEST] = running.highest, part[TOTAL] = total;
        }
        if (!comes_last(work, counters)) return;
        total = merge(running.result, columns, part - work.split * heads * PARTIAL, heads * PARTIAL, work.splits);
    }
    if (work.asked != work.head) return;
    half* const target = out + work.row.first_token * out_pitch + work.head * WIDTH;
    const float share = 1 / total;
#pragma unroll
    for (int number = 0; number < RESULTS; ++number)  // -0 becomes 0, whatever weighed nothing
        if (columns[number] < WIDTH) target[columns[number]] = to_half(__fmaf_rn(running.result[number], share, 0.0f));
}
