// out (T, O) = x (T, I) w (O, I)^T + b (O,), or that added to `out`, for few tokens: w stays in its 4-bit groups.
//
// Law: a weight is the half nearest to code * scale + zero, as expand.cu gives it; its products with x are summed in
// float32 from the first input to the last, 16 at a time as one instruction of the tensor cores takes them, whatever
// else is beside the row. The sum is rounded to OUT; then, where it is added, its sum with what `out` held; then that
// with b. On devices of compute capability 9 these are the bits of the library's products of the expanded matrix.
// Shapes: T at most 8 TOKEN_TILES; I a multiple of 128; codes (O, I / 2) planar in groups of 2^n = 32, 64 or 128 weights;
// scale and zero (O, I / group). Rows of x and of codes are aligned to 16 bytes.
// Block: 16 outputs of each of WARPS warps, all tokens and all inputs: one warp adds up all of a sum.
// Launch: (O / (16 WARPS), 1, 1) blocks of 32 WARPS, with STAGES * (x and codes of a chunk) of dynamic shared memory:
// both arrive STAGES - 1 chunks ahead of their use, for few warps must have much of w under way.
//
// Inside a step of 16 inputs the order is free: lane l of a quad takes inputs 4 l .. 4 l + 3, which are one word of codes
// and 8 bytes of x, for its columns 2 l, 2 l + 1, 2 l + 8 and 2 l + 9 of a tile.

constexpr int THREADS = WARPS * WARP;
constexpr int ROWS = 16;                // outputs of a warp
constexpr int CHUNK = 128, STEP = 16;   // inputs at a time, and of one instruction
constexpr int STEPS = CHUNK / STEP;
constexpr int CODES_BYTES = CHUNK / 2, CODES_PITCH = CODES_BYTES + 16;    // in shared memory no two lanes of a warp, or
constexpr int TOKEN_BYTES = CHUNK * 2, TOKEN_PITCH = TOKEN_BYTES + 32;    // of half a warp, read from the same banks
constexpr int TOKENS_BYTES = 8 * TOKEN_TILES * TOKEN_PITCH, CODES_OF_WARP = ROWS * CODES_PITCH;
constexpr int STAGE_BYTES = TOKENS_BYTES + WARPS * CODES_OF_WARP;
constexpr int AHEAD = 4;  // chunks whose scales and zeros are under way
constexpr int PIECES = TOKEN_BYTES / 16, TOKENS_AT_ONCE = THREADS / PIECES;
constexpr unsigned LOW_NIBBLES = 0x0f0f0f0fu;

struct alignas(8) Inputs {
    pair at[2];
};

// Scales and zeros of a lane's two outputs, for the group of its quarter of a chunk.
struct Group {
    pair scale, zero;
};

// Four codes -> a lane's weights of one step, in the upper or lower half of a tile's rows.
__device__ __forceinline__ void decode(unsigned codes, pair scale, pair zero, pair (&tile)[4], int lower) {
    codes_to_pairs(codes & LOW_NIBBLES, tile[lower], tile[2 + lower]);
    tile[lower] = multiply_add(tile[lower], scale, zero);
    tile[2 + lower] = multiply_add(tile[2 + lower], scale, zero);
}

__device__ __forceinline__ pair both(pair halves, int second) {
    return permute_bytes(halves, halves, second ? 0x3232u : 0x1010u);
}

extern "C" __global__ void __launch_bounds__(128)
    linear_in_order(const half* x, integer x_pitch, const unsigned char* codes, integer codes_pitch, const half* scale,
                    integer scale_pitch, const half* zero, integer zero_pitch, const BIAS* bias, OUT* out,
                    integer out_pitch, integer add, integer tokens, integer outputs, integer inputs,
                    integer group_shift) {
    DYNAMIC_SHARED(stages);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, quad_lane = lane % 4;
    const int first_row = (blockIdx.x * WARPS + warp) * ROWS, most = static_cast<int>(outputs);
    const int count = static_cast<int>(tokens), chunks = static_cast<int>(inputs) / CHUNK;
    // A group is 2^runs runs of 16 bytes of codes: their low nibbles are so many steps, and so are their high ones.
    const int runs = static_cast<int>(group_shift) - 4;

    // Outputs beyond the last one are read as the last one, and never stored.
    const int copied_row = lane / 4, piece = lane % 4;
    const unsigned char* codes_from[2];
    unsigned scale_row[2], zero_row[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
        const unsigned row = min(first_row + copied_row + 8 * part, most - 1);
        codes_from[part] = codes + row * codes_pitch + 16 * piece;
        scale_row[part] = row * static_cast<unsigned>(scale_pitch);
        zero_row[part] = row * static_cast<unsigned>(zero_pitch);
    }
    const int codes_to = TOKENS_BYTES + warp * CODES_OF_WARP + copied_row * CODES_PITCH + 16 * piece;
    const int token = threadIdx.x / PIECES;
    const half* const tokens_from = x + token * x_pitch + threadIdx.x % PIECES * 8;
    const int tokens_to = token * TOKEN_PITCH + threadIdx.x % PIECES * 16;

    const auto copy = [&](int chunk) {
        unsigned char* const stage = stages + chunk % STAGES * STAGE_BYTES;
#pragma unroll
        for (int part = 0; part < 2; ++part)
            copy_beside(stage + codes_to + part * 8 * CODES_PITCH, codes_from[part] + chunk * CODES_BYTES);
#pragma unroll
        for (int start = 0; start < 8 * TOKEN_TILES; start += TOKENS_AT_ONCE)
            if (start + token < count)
                copy_beside(stage + tokens_to + start * TOKEN_PITCH, tokens_from + start * x_pitch + chunk * CHUNK);
    };
    const auto fetch = [&](int chunk) {
        const unsigned group = (chunk * 4 + quad_lane) >> runs;
        return Group{to_pair(scale[scale_row[0] + group], scale[scale_row[1] + group]),
                     to_pair(zero[zero_row[0] + group], zero[zero_row[1] + group])};
    };

    Group groups[AHEAD];
    float sums[TOKEN_TILES][4] = {};
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) {
        if (ahead < chunks) copy(ahead);
        close_batch();  // an empty one too: batches are counted
    }
#pragma unroll
    for (int ahead = 0; ahead < AHEAD; ++ahead)
        if (ahead < chunks) groups[ahead] = fetch(ahead);
    for (int start = 0; start < chunks; start += AHEAD) {
#pragma unroll
        for (int ahead = 0; ahead < AHEAD; ++ahead) {
            const int chunk = start + ahead;
            if (chunk >= chunks) break;
            await_batches<STAGES - 2>();
            __syncthreads();  // the chunk is there for all, and nobody reads the one before it any more
            if (chunk + STAGES - 1 < chunks) copy(chunk + STAGES - 1);
            close_batch();
            const unsigned char* const stage = stages + chunk % STAGES * STAGE_BYTES;
            const unsigned char* const words =
                stage + TOKENS_BYTES + warp * CODES_OF_WARP + quad * CODES_PITCH + 4 * quad_lane;
            const unsigned char* const numbers = stage + quad * TOKEN_PITCH + 8 * quad_lane;
            pair scales[2], zeros[2];
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const int group = step >> (runs + 1), high = step >> runs & 1;
                const int run = (group << runs) + (step & ((1 << runs) - 1));
                if (step % 2 == 0) {
                    const int holder = lane - quad_lane + (group << runs);
                    const pair scale_of_two = __shfl_sync(EVERY_LANE, groups[ahead].scale, holder);
                    const pair zero_of_two = __shfl_sync(EVERY_LANE, groups[ahead].zero, holder);
#pragma unroll
                    for (int row = 0; row < 2; ++row)
                        scales[row] = both(scale_of_two, row), zeros[row] = both(zero_of_two, row);
                }
                pair w[4];
#pragma unroll
                for (int row = 0; row < 2; ++row) {
                    const unsigned word =
                        *reinterpret_cast<const unsigned*>(words + row * 8 * CODES_PITCH + 16 * run);
                    decode(word >> 4 * high, scales[row], zeros[row], w, row);
                }
#pragma unroll
                for (int tile = 0; tile < TOKEN_TILES; ++tile) {
                    const Inputs read = *reinterpret_cast<const Inputs*>(numbers + tile * 8 * TOKEN_PITCH + 32 * step);
                    multiply_tiles(sums[tile], w, read.at);
                }
            }
            if (chunk + AHEAD < chunks) groups[ahead] = fetch(chunk + AHEAD);
        }
    }

#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const int output = first_row + quad + 8 * row;
        if (output >= most) continue;
        const float shift = bias ? to_float(bias[output]) : 0.0f;
#pragma unroll
        for (int place = 0; place < 2 * TOKEN_TILES; ++place) {
            const int target_token = place / 2 * 8 + 2 * quad_lane + place % 2;
            if (target_token >= count) continue;
            OUT* const target = out + target_token * out_pitch + output;
            OUT result = rounded<OUT>(sums[place / 2][2 * row + place % 2]);
            if (add) result = rounded<OUT>(to_float(result) + to_float(*target));
            if (bias) result = rounded<OUT>(to_float(result) + shift);
            *target = result;
        }
    }
}
