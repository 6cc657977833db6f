// chosen (B,): a token id for each row of logits (B, V) of type LOGITS; for a row whose logits are not all finite,
// -1 - the first token whose logit is not.
//
// Law: tokens stand in falling order of their logits, equal ones by id, and -0 equals 0. The first `top_k` stay (all,
// if it is not from 1 to V); of those the shortest beginning that holds the share `top_p` of their probability; of
// that the first token at which more than the share `uniforms[row]` is reached. Temperature 0 takes the first of all.
//
// Nothing is sorted. A key is a logit as an integer that keeps the order; the key at which a sum of amounts over the
// falling order reaches what is needed is found eleven of its bits at a time, in histograms of the amounts. An amount
// is 1 per token, to find the boundary of `top_k`, and else the token's probability times the best one's inverse, as
// an integer: no order of summation changes a sum, and none exceeds 64 bits as long as V <= 2^24. What is cut off
// each amount, 2^-39 of the best one's, is less than float32 rounds a sum by, V 2^-24.
// Tokens of one key have equal amounts, so only the last step looks at ids.
// Block: one row, so no row has an effect on another.
// Launch: (B, 1, 1) blocks of THREADS.

#ifndef LOGITS
#define LOGITS half
#endif

typedef unsigned long long Amount;

constexpr int THREADS = 1024, WARPS = THREADS / WARP;
constexpr int DIGIT_BITS = 11, BINS = 1 << DIGIT_BITS, FIRST_SHIFT = 32 - DIGIT_BITS;
constexpr float BEST_AMOUNT = 549755813888.0f;  // 2^39
static_assert(BINS == 2 * THREADS, "a thread has two bins");

struct Shared {
    // Native additions have 32 bits: amounts in two parts, the lower one's carry goes to the upper.
    unsigned low[BINS], high[BINS];
    Amount totals[WARPS];
    int firsts[WARPS];
    Amount before;
    int bin;
};

// Tokens that may be taken: all above `key`, and `ties` of those at it.
struct Kept {
    unsigned key;
    Amount ties;
};

// Where a sum reaches what is needed: at which key, what stands before it, and what is needed.
struct Reached {
    unsigned key;
    Amount before, needed;
};

__device__ __forceinline__ unsigned bits_of(float value) { return __float_as_uint(value); }

// Greater for greater logits, the same for 0 and -0, never 0 for a finite one.
__device__ __forceinline__ unsigned key_of(float logit) {
    const unsigned bits = bits_of(logit + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(unsigned key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Calls visit(logit, id) for the whole row, each id in one thread; 16 bytes at a time wherever the row starts.
template <typename Visit>
__device__ __forceinline__ void for_each(const LOGITS* logits, int count, Visit visit) {
    constexpr int RUN = 16 / sizeof(LOGITS);
    struct alignas(16) Run {
        LOGITS at[RUN];
    };
    const int thread = threadIdx.x;
    const int misplaced = static_cast<int>(reinterpret_cast<unsigned long long>(logits) / sizeof(LOGITS) % RUN);
    const int head = min(count, (RUN - misplaced) % RUN), runs = (count - head) / RUN;
    const int edge = thread < head ? thread : thread + runs * RUN;
    if (edge < count) visit(to_float(logits[edge]), edge);
    for (int run = thread; run < runs; run += THREADS) {
        const int first = head + run * RUN;
        const Run numbers = *reinterpret_cast<const Run*>(logits + first);
#pragma unroll
        for (int number = 0; number < RUN; ++number) visit(to_float(numbers.at[number]), first + number);
    }
}

// The best token as its key and its id's complement, the lowest id first; and the first token that is not finite.
__device__ __forceinline__ Amount best_of(const LOGITS* logits, int count, Shared& shared, int& not_finite) {
    Amount best = 0;
    int first = count;
    for_each(logits, count, [&](float logit, int id) {
        if ((bits_of(logit) & 0x7f800000u) == 0x7f800000u) first = min(first, id);
        best = max(best, static_cast<Amount>(key_of(logit)) << 32 | ~static_cast<unsigned>(id));
    });
    const auto over_the_warp = [&] {
        for (int distance = WARP / 2; distance; distance /= 2) {
            best = max(best, __shfl_xor_sync(EVERY_LANE, best, distance));
            first = min(first, __shfl_xor_sync(EVERY_LANE, first, distance));
        }
    };
    over_the_warp();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (lane == 0) shared.totals[warp] = best, shared.firsts[warp] = first;
    __syncthreads();
    best = shared.totals[lane], first = shared.firsts[lane];
    over_the_warp();
    not_finite = first;
    return best;
}

__device__ __forceinline__ void add(Shared& shared, int bin, Amount amount) {
    const unsigned low = static_cast<unsigned>(amount), old = atomicAdd(&shared.low[bin], low);
    const unsigned high = static_cast<unsigned>(amount >> 32) + (old + low < low);
    if (high) atomicAdd(&shared.high[bin], high);
}

// What a bin holds; it is empty afterwards.
__device__ __forceinline__ Amount taken_out(Shared& shared, int bin) {
    const Amount amount = static_cast<Amount>(shared.high[bin]) << 32 | shared.low[bin];
    shared.low[bin] = shared.high[bin] = 0;
    return amount;
}

// The sum over the lanes up to one's own.
__device__ __forceinline__ Amount running_sum(Amount value) {
    for (int distance = 1; distance < WARP; distance *= 2) {
        const Amount other = __shfl_up_sync(EVERY_LANE, value, distance);
        if (threadIdx.x % WARP >= distance) value += other;
    }
    return value;
}

// The highest bin with which the sum from above, `before` included, reaches what is needed; `before` becomes the sum
// without it. On the first call `needed` is need_of(the sum of all bins). All bins are empty afterwards.
template <typename Need>
__device__ __forceinline__ int settled_bin(Shared& shared, bool first, Need need_of, Amount& needed, Amount& before) {
    const int upper = BINS - 1 - 2 * static_cast<int>(threadIdx.x), warp = threadIdx.x / WARP;
    const Amount in_upper = taken_out(shared, upper), both = in_upper + taken_out(shared, upper - 1);
    const Amount in_warp = running_sum(both);
    if (threadIdx.x % WARP == WARP - 1) shared.totals[warp] = in_warp;
    __syncthreads();
    const Amount in_warps = running_sum(shared.totals[threadIdx.x % WARP]);
    const Amount total = __shfl_sync(EVERY_LANE, in_warps, WARP - 1);
    const Amount earlier = __shfl_sync(EVERY_LANE, in_warps, max(warp - 1, 0));
    if (first) needed = need_of(total);
    const Amount above = before + (warp ? earlier : 0) + in_warp - both;
    if (above < needed && needed <= above + both) {
        const bool lower = needed > above + in_upper;
        shared.bin = lower ? upper - 1 : upper;
        shared.before = lower ? above + in_upper : above;
    }
    __syncthreads();
    before = shared.before;
    return shared.bin;
}

// amount_of(key) is a token's amount; need_of(sum over all kept tokens), from 1 to that sum, is what must be reached.
// Bins must be empty, and are so afterwards.
template <typename AmountOf, typename Need>
__device__ __forceinline__ Reached descend(const LOGITS* logits, int count, Shared& shared, Kept kept,
                                           AmountOf amount_of, Need need_of) {
    Reached reached = {0, 0, 0};
    unsigned settled = 0;
    for (int shift = FIRST_SHIFT;; shift = max(shift - DIGIT_BITS, 0)) {
        const auto tally = [&](unsigned key, Amount times) {
            if ((key ^ reached.key) & settled) return;
            const Amount amount = times * amount_of(key);
            if (amount) add(shared, key >> shift & (BINS - 1), amount);
        };
        for_each(logits, count, [&](float logit, int) {
            const unsigned key = key_of(logit);
            if (key > kept.key) tally(key, 1);
        });
        if (threadIdx.x == 0 && kept.ties) tally(kept.key, kept.ties);
        __syncthreads();
        const int bin = settled_bin(shared, shift == FIRST_SHIFT, need_of, reached.needed, reached.before);
        reached.key |= static_cast<unsigned>(bin) << shift;
        settled = ~0u << shift;
        if (!shift) return reached;
    }
}

// Which of WARP tokens from `start` on have the key, as bits.
__device__ __forceinline__ unsigned same_keys(const LOGITS* logits, int start, int end, unsigned key) {
    const int id = start + threadIdx.x % WARP;
    return __ballot_sync(EVERY_LANE, id < end && key_of(to_float(logits[id])) == key);
}

// Writes the id of the token that has the key as its `number`-th, from 0, in the order of ids.
__device__ __forceinline__ void write_id(const LOGITS* logits, int count, Shared& shared, unsigned key, Amount number,
                                         int* chosen) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int part = (count + THREADS - 1) / THREADS * WARP;
    const int start = min(warp * part, count), end = min(start + part, count);
    Amount mine = 0;
    for (int place = start; place < end; place += WARP) mine += __popc(same_keys(logits, place, end, key));
    if (lane == 0) shared.totals[warp] = mine;
    __syncthreads();
    Amount before = 0;
    for (int other = 0; other < warp; ++other) before += shared.totals[other];
    if (number < before || number >= before + mine) return;
    for (int place = start; place < end; place += WARP) {
        const unsigned same = same_keys(logits, place, end, key);
        if (same >> lane & 1 && before + __popc(same & ((1u << lane) - 1)) == number) *chosen = place + lane;
        before += __popc(same);
    }
}

// A share of a sum as a whole number from 1 to the sum.
__device__ __forceinline__ Amount between(double share, Amount sum) {
    return min(max(static_cast<Amount>(share), Amount(1)), sum);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    sample(const LOGITS* logits, integer pitch, integer vocabulary, double temperature, integer top_k, double top_p,
           const double* uniforms, int* chosen) {
    await_earlier();
    __shared__ Shared shared;
    const LOGITS* const row = logits + blockIdx.x * pitch;
    const int count = static_cast<int>(vocabulary);
    shared.low[threadIdx.x] = shared.low[threadIdx.x + THREADS] = 0;
    shared.high[threadIdx.x] = shared.high[threadIdx.x + THREADS] = 0;
    int not_finite;
    const Amount best = best_of(row, count, shared, not_finite);
    if (not_finite < count || temperature == 0) {
        if (threadIdx.x == 0)
            chosen[blockIdx.x] = not_finite < count ? -1 - not_finite : static_cast<int>(~static_cast<unsigned>(best));
        return;
    }
    const float best_logit = logit_of(static_cast<unsigned>(best >> 32)), divisor = static_cast<float>(temperature);
    const auto amount_of = [&](unsigned key) {
        return static_cast<Amount>(expf((logit_of(key) - best_logit) / divisor) * BEST_AMOUNT);
    };
    Kept kept = {0, 0};
    if (0 < top_k && top_k < vocabulary) {
        const auto one = [](unsigned) { return Amount(1); };
        const auto need = [&](Amount) { return static_cast<Amount>(top_k); };
        const Reached last = descend(row, count, shared, kept, one, need);
        kept = {last.key, last.needed - last.before};
    }
    Amount whole = ~Amount(0);
    if (top_p < 1) {
        const auto need = [&](Amount sum) { return between(ceil(top_p * static_cast<double>(sum)), sum); };
        const Reached last = descend(row, count, shared, kept, amount_of, need);
        const Amount each = amount_of(last.key);
        whole = last.before + (last.needed - last.before + each - 1) / each * each;
    }
    const double uniform = uniforms[blockIdx.x];
    const auto need = [&](Amount sum) {
        const Amount all = min(whole, sum);
        return between(floor(uniform * static_cast<double>(all)) + 1, all);
    };
    const Reached drawn = descend(row, count, shared, kept, amount_of, need);
    const Amount number = (drawn.needed - drawn.before - 1) / amount_of(drawn.key);
    write_id(row, count, shared, drawn.key, number, chosen + blockIdx.x);
}
