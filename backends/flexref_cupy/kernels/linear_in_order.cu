// out (T, O) = x (T, I) w (O, I)^T + b (O,), or that added to `out`, for few tokens: w stays in its 4-bit groups.
//
// Law: a weight is the half nearest to code * scale + zero, as expand.cu gives it; its products with x are summed in
// float32 from the first input to the last, 16 at a time as one instruction of the tensor cores takes them, whatever
// else is beside the row. The sum is rounded to OUT; then, where it is added, its sum with what `out` held; then that
// with b. On devices of compute capability 9 these are the bits of the library's products of the expanded matrix.
// Shapes: T at most 8 TOKEN_TILES; I a multiple of 128; codes (O, I / 2) planar in groups of 2^n = 32, 64 or 128 weights;
// scale and zero (O, I / group). Rows of x and of codes are aligned to 16 bytes.
// Block: 16 ROW_TILES outputs, all tokens and all inputs. TOKEN_WARPS warps share the tokens of 16 outputs, and each of
// them decodes these outputs' weights; one warp adds up all of a sum.
// Launch: (O / (16 ROW_TILES), 1, 1) blocks of 32 ROW_TILES TOKEN_WARPS, with STAGES * STAGE_BYTES of dynamic shared
// memory: x and codes arrive STAGES - 1 chunks ahead of their use, for few warps must have much of w under way.
//
// Inside a step of 16 inputs the order is free: lane l of a quad takes inputs 4 l .. 4 l + 3, which are one word of codes
// and 8 bytes of x, for its columns 2 l, 2 l + 1, 2 l + 8 and 2 l + 9 of a tile.

constexpr int THREADS = ROW_TILES * TOKEN_WARPS * WARP;
constexpr int ROWS = 16;               // outputs of a warp
constexpr int CHUNK = 128, STEP = 16;  // inputs at a time, and of one instruction
constexpr int TILES = TOKEN_TILES / TOKEN_WARPS;  // of eight tokens, of a warp
constexpr int STEPS = CHUNK / STEP, STEPS_AT_ONCE = TILES <= 2 ? STEPS : STEPS / 2;
// Pitches in shared memory: no two lanes of a warp, or of half a warp, read different words of a bank.
constexpr int CODES_BYTES = CHUNK / 2, CODES_PITCH = CODES_BYTES + 16;
constexpr int TOKEN_BYTES = CHUNK * 2, TOKEN_PITCH = TOKEN_BYTES + 32;
constexpr int TOKENS_BYTES = 8 * TOKEN_TILES * TOKEN_PITCH, CODES_OF_TILE = ROWS * CODES_PITCH;
constexpr int STAGE_BYTES = TOKENS_BYTES + ROW_TILES * CODES_OF_TILE;
constexpr int AHEAD = 4;  // chunks whose scales and zeros are under way
constexpr int PIECES = TOKEN_BYTES / 16, TOKENS_AT_ONCE = THREADS / PIECES;
constexpr int COPIES = (ROW_TILES * ROWS * 4 + THREADS - 1) / THREADS;  // of 16 bytes of codes, by a thread
constexpr unsigned LOW_NIBBLES = 0x0f0f0f0fu;

struct alignas(8) Inputs {
    pair at[2];
};

// Scales and zeros of a lane's two outputs, for the group of its quarter of a chunk.
struct Group {
    half scale[2], zero[2];
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

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear_in_order(const half* x, integer x_pitch, const unsigned char* codes, integer codes_pitch, const half* scale,
                    integer scale_pitch, const half* zero, integer zero_pitch, const BIAS* bias, OUT* out,
                    integer out_pitch, integer add, integer tokens, integer outputs, integer inputs,
                    integer group_shift) {
    DYNAMIC_SHARED(stages);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, quad_lane = lane % 4;
    const int row_tile = warp / TOKEN_WARPS, token_part = warp % TOKEN_WARPS;
    const int first_row = (blockIdx.x * ROW_TILES + row_tile) * ROWS, most = static_cast<int>(outputs);
    const int count = static_cast<int>(tokens), chunks = static_cast<int>(inputs) / CHUNK;
    // A group is 2^runs runs of 16 bytes of codes: their low nibbles are so many steps, and so are their high ones.
    const int runs = static_cast<int>(group_shift) - 4;

    // Outputs beyond the last one are read as the last one, and never stored.
    const unsigned char* codes_from[COPIES];
    int codes_to[COPIES];
#pragma unroll
    for (int part = 0; part < COPIES; ++part) {
        const int number = threadIdx.x + part * THREADS, row = number / 4, piece = number % 4;
        const integer place = min(static_cast<int>(blockIdx.x) * ROW_TILES * ROWS + row, most - 1);
        codes_from[part] = codes + place * codes_pitch + 16 * piece;
        codes_to[part] = row < ROW_TILES * ROWS ? TOKENS_BYTES + row * CODES_PITCH + 16 * piece : -1;
    }
    unsigned scale_row[2], zero_row[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
        const unsigned row = min(first_row + quad + 8 * part, most - 1);
        scale_row[part] = row * static_cast<unsigned>(scale_pitch);
        zero_row[part] = row * static_cast<unsigned>(zero_pitch);
    }
    const int token = threadIdx.x / PIECES;
    const half* const tokens_from = x + token * x_pitch + threadIdx.x % PIECES * 8;
    const int tokens_to = token * TOKEN_PITCH + threadIdx.x % PIECES * 16;

    const auto copy = [&](int chunk) {
        unsigned char* const stage = stages + chunk % STAGES * STAGE_BYTES;
#pragma unroll
        for (int part = 0; part < COPIES; ++part)
            if (codes_to[part] >= 0) copy_beside(stage + codes_to[part], codes_from[part] + chunk * CODES_BYTES);
#pragma unroll
        for (int start = 0; start < 8 * TOKEN_TILES; start += TOKENS_AT_ONCE)
            if (start + token < min(count, 8 * TOKEN_TILES))
                copy_beside(stage + tokens_to + start * TOKEN_PITCH, tokens_from + start * x_pitch + chunk * CHUNK);
    };
    const auto fetch = [&](int chunk) {
        const unsigned group = (chunk * 4 + quad_lane) >> runs;
        // Nothing is made of them here, or the thread would wait for them.
        return Group{{scale[scale_row[0] + group], scale[scale_row[1] + group]},
                     {zero[zero_row[0] + group], zero[zero_row[1] + group]}};
    };

    Group groups[AHEAD];
    float sums[TILES][4] = {};
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
                stage + TOKENS_BYTES + row_tile * CODES_OF_TILE + quad * CODES_PITCH + 4 * quad_lane;
            const unsigned char* const numbers = stage + (token_part * TILES * 8 + quad) * TOKEN_PITCH + 8 * quad_lane;
#pragma unroll
            for (int start_step = 0; start_step < STEPS; start_step += STEPS_AT_ONCE) {
                // What the steps need is independent of each other: all of it is read and decoded before the sums, whose
                // steps wait for one another.
                pair w[STEPS_AT_ONCE][4];
                unsigned read[STEPS_AT_ONCE][2];
                pair scales[STEPS_AT_ONCE / 2], zeros[STEPS_AT_ONCE / 2];
                const pair scale_of_two = to_pair(groups[ahead].scale[0], groups[ahead].scale[1]);
                const pair zero_of_two = to_pair(groups[ahead].zero[0], groups[ahead].zero[1]);
#pragma unroll
                for (int place = 0; place < STEPS_AT_ONCE; ++place) {
                    const int step = start_step + place, group = step >> (runs + 1);
                    const int run = (group << runs) + (step & ((1 << runs) - 1));
#pragma unroll
                    for (int row = 0; row < 2; ++row)
                        read[place][row] =
                            *reinterpret_cast<const unsigned*>(words + row * 8 * CODES_PITCH + 16 * run);
                    if (place % 2) continue;
                    const int holder = lane - quad_lane + (group << runs);
                    scales[place / 2] = __shfl_sync(EVERY_LANE, scale_of_two, holder);
                    zeros[place / 2] = __shfl_sync(EVERY_LANE, zero_of_two, holder);
                }
#pragma unroll
                for (int place = 0; place < STEPS_AT_ONCE; ++place) {
                    const int high = (start_step + place) >> runs & 1;
#pragma unroll
                    for (int row = 0; row < 2; ++row)
                        decode(read[place][row] >> 4 * high, both(scales[place / 2], row),
                               both(zeros[place / 2], row), w[place], row);
                }
#pragma unroll
                for (int place = 0; place < STEPS_AT_ONCE; ++place)
#pragma unroll
                    for (int tile = 0; tile < TILES; ++tile) {
                        const Inputs eight = *reinterpret_cast<const Inputs*>(
                            numbers + tile * 8 * TOKEN_PITCH + 32 * (start_step + place));
                        multiply_tiles(sums[tile], w[place], eight.at);
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
        for (int place = 0; place < 2 * TILES; ++place) {
            const int target_token = (token_part * TILES + place / 2) * 8 + 2 * quad_lane + place % 2;
            if (target_token >= count) continue;
            OUT* const target = out + target_token * out_pitch + output;
            OUT result = rounded<OUT>(sums[place / 2][2 * row + place % 2]);
            if (add) result = rounded<OUT>(to_float(result) + to_float(*target));
            if (bias) result = rounded<OUT>(to_float(result) + shift);
            *target = result;
        }
    }
}
