// out (T, O) = x (T, I) w (O, I)^T + b (O,), or that added to `out`, for few tokens: w stays in its 4-bit groups.
//
// Law: a weight is the half nearest to code * scale + zero, as expand.cu gives it; its products with x are summed in
// float32, in an order that follows from the shapes and the launch alone; b and what `out` held are added in float32,
// and the result is rounded once, to OUT.
// Shapes: T at most 8 TOKEN_TILES; I a multiple of 128; codes (O, I / 2) planar in groups of 2^n = 32, 64 or 128 weights;
// scale and zero (O, I / group). Rows of x and of codes are aligned to 16 bytes.
// Block: BLOCK_ROWS outputs and all tokens, over the part blockIdx.y of the inputs. Several parts leave their sums in
// `partials`, and the last block of the outputs to arrive, by `counters`, adds them up in the order of the parts.
// Launch: (O / BLOCK_ROWS, parts, 1) blocks of THREADS, with STAGES * BUFFER_BYTES of dynamic shared memory: x arrives
// STAGES - 1 chunks ahead of its use, for one chunk's products take less time than its way from the second-level cache.
//
// A sum may be taken in any order, so the inputs go to the tensor cores as the codes lie: of a chunk's 64 bytes per
// output, lane l of a quad reads bytes 16 l .. 16 l + 15. The low nibbles of four of them are the lane's share of one
// step (columns 2 l, 2 l + 1, 2 l + 8 and 2 l + 9 of a tile), the high ones of another. The same inputs of x lie side by
// side: of every token a lane reads two runs of 16, one for either nibble, which are its operands as they are.

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int ROW_TILES = 2;  // of a warp: what it reads of x serves so many products
constexpr int BLOCK_ROWS = WARPS * ROW_TILES * 16;
constexpr int CHUNK = 128;                       // inputs at a time
constexpr int AHEAD = TOKEN_TILES <= 2 ? 4 : 2;  // chunks of codes under way, as many as registers hold
constexpr int PIECES = CHUNK / 8;                // of 16 bytes, in a token's chunk
constexpr int TOKEN_BYTES = 16 * PIECES;
constexpr int BUFFER_BYTES = 8 * TOKEN_TILES * TOKEN_BYTES;
constexpr int TILES = ROW_TILES * TOKEN_TILES;
constexpr int LANE_ROWS = 2 * ROW_TILES;  // outputs whose weights a lane holds
constexpr unsigned LOW_NIBBLES = 0x0f0f0f0fu;

struct alignas(16) Words {
    unsigned at[4];
};

struct alignas(16) Sums {
    float at[4];
};

// A lane's share of a chunk of w: number n is that of its first output + 8 n.
struct Weights {
    Words codes[LANE_ROWS];
    half scale[LANE_ROWS], zero[LANE_ROWS];
};

// Where a lane finds its shares; outputs beyond the last one are read as the last one, and never stored.
struct Matrix {
    const unsigned char* codes[LANE_ROWS];
    unsigned scale_row[LANE_ROWS], zero_row[LANE_ROWS];
    const half *scale, *zero;
    int byte, group_shift;  // the lane's first byte in a chunk; a group has 2 << group_shift weights

    __device__ __forceinline__ void fetch(Weights& share, int chunk) const {
        const unsigned group = (chunk * (CHUNK / 2) + byte) >> group_shift;
#pragma unroll
        for (int row = 0; row < LANE_ROWS; ++row) {
            share.codes[row] = *reinterpret_cast<const Words*>(codes[row] + chunk * (CHUNK / 2));
            share.scale[row] = scale[scale_row[row] + group];
            share.zero[row] = zero[zero_row[row] + group];
        }
    }
};

// Where in a token's chunk in shared memory the piece lies that lane `quad_lane` reads for the low or (1) high nibbles
// of the first or (1) second half of its bytes. Two tokens lie in the same banks, hence the turn of every other one.
__device__ __forceinline__ int place_of(int quad_lane, int high, int second, int token) {
    return quad_lane + 4 * (high ^ (token & 1)) + 8 * second;
}

// The copy of a chunk of x (T, I): a thread copies the same piece of every eighth token.
struct Tokens {
    const half* source;
    integer stride;
    int token, count, target;

    __device__ __forceinline__ Tokens(const half* x, integer pitch, int tokens, int group_shift)
        : stride(8 * pitch), token(threadIdx.x / PIECES), count(tokens) {
        const int piece = threadIdx.x % PIECES, byte = 16 * (piece % 4), half_group = 1 << group_shift;
        const int high = piece / 4 % 2, second = piece / 8, group = byte >> group_shift;
        const int column = (2 * group + high) * half_group + (byte - group * half_group) + 8 * second;
        source = x + token * pitch + column;
        target = token * TOKEN_BYTES + 16 * place_of(piece % 4, high, second, token);
    }

    __device__ __forceinline__ void copy(unsigned char* buffer, int chunk) const {
#pragma unroll
        for (int tile = 0; tile < TOKEN_TILES; ++tile)
            if (8 * tile + token < count)
                copy_beside(buffer + tile * 8 * TOKEN_BYTES + target, source + tile * stride + chunk * CHUNK);
    }
};

// Four codes -> a lane's weights of one step, in the upper or lower half of a tile's rows.
__device__ __forceinline__ void decode(unsigned nibbles, pair scale, pair zero, pair (&tile)[4], int lower) {
    codes_to_pairs(nibbles & LOW_NIBBLES, tile[lower], tile[2 + lower]);
    tile[lower] = multiply_add(tile[lower], scale, zero);
    tile[2 + lower] = multiply_add(tile[2 + lower], scale, zero);
}

// sums += a chunk; `tokens` is where the lane's first piece lies, `high` how far its piece for high nibbles is from it.
__device__ __forceinline__ void multiply(float (&sums)[TILES][4], const Weights& share, const unsigned char* tokens,
                                         int high) {
#pragma unroll
    for (int second = 0; second < 2; ++second) {
        pair w[ROW_TILES][4][4];  // of four steps
#pragma unroll
        for (int row = 0; row < LANE_ROWS; ++row) {
            const pair scale = to_pair(share.scale[row], share.scale[row]);
            const pair zero = to_pair(share.zero[row], share.zero[row]);
#pragma unroll
            for (int word = 0; word < 2; ++word) {
                const unsigned codes = share.codes[row].at[2 * second + word];
                decode(codes, scale, zero, w[row / 2][word], row % 2);
                decode(codes >> 4, scale, zero, w[row / 2][2 + word], row % 2);
            }
        }
#pragma unroll
        for (int token_tile = 0; token_tile < TOKEN_TILES; ++token_tile) {
            const unsigned char* const place = tokens + token_tile * 8 * TOKEN_BYTES + second * TOKEN_BYTES / 2;
            const Words x[2] = {*reinterpret_cast<const Words*>(place), *reinterpret_cast<const Words*>(place + high)};
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                const pair inputs[2] = {x[step / 2].at[step % 2 * 2], x[step / 2].at[step % 2 * 2 + 1]};
#pragma unroll
                for (int tile = 0; tile < ROW_TILES; ++tile)
                    multiply_tiles(sums[tile * TOKEN_TILES + token_tile], w[tile][step], inputs);
            }
        }
    }
}

// Whether this block is the last one of its outputs to arrive; its sums are then those of all parts. `arrived` is shared.
__device__ __forceinline__ bool add_up(float (&sums)[TILES][4], float* partials, unsigned* counters,
                                       unsigned& arrived) {
    Sums* const parts = reinterpret_cast<Sums*>(partials) + threadIdx.x;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        Sums part = {{sums[tile][0], sums[tile][1], sums[tile][2], sums[tile][3]}};
        parts[((blockIdx.y * gridDim.x + blockIdx.x) * TILES + tile) * THREADS] = part;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(counters + blockIdx.x, 1u) + 1;
    __syncthreads();
    if (arrived < gridDim.y) return false;
    __threadfence();
    if (threadIdx.x == 0) counters[blockIdx.x] = 0;
    for (unsigned part = 0; part < gridDim.y; ++part)
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const Sums other = parts[((part * gridDim.x + blockIdx.x) * TILES + tile) * THREADS];
#pragma unroll
            for (int place = 0; place < 4; ++place)
                sums[tile][place] = part ? sums[tile][place] + other.at[place] : other.at[place];
        }
    return true;
}

extern "C" __global__ void __launch_bounds__(128, 2)
    linear_int4(const half* x, integer x_pitch, const unsigned char* codes, integer codes_pitch, const half* scale,
                integer scale_pitch, const half* zero, integer zero_pitch, const BIAS* bias, OUT* out,
                integer out_pitch, integer add, integer tokens, integer outputs, integer inputs, integer group_shift,
                float* partials, unsigned* counters) {
    DYNAMIC_SHARED(buffers);
    const int lane = threadIdx.x % WARP, quad = lane / 4, quad_lane = lane % 4;
    const int output = blockIdx.x * BLOCK_ROWS + threadIdx.x / WARP * ROW_TILES * 16 + quad;
    const int chunks = static_cast<int>(inputs) / CHUNK;
    const int first = chunks * blockIdx.y / gridDim.y, last = chunks * (blockIdx.y + 1) / gridDim.y;

    Matrix matrix;
    matrix.scale = scale, matrix.zero = zero;
    matrix.byte = 16 * quad_lane, matrix.group_shift = static_cast<int>(group_shift);
#pragma unroll
    for (int row = 0; row < LANE_ROWS; ++row) {
        const unsigned place = min(output + 8 * row, static_cast<int>(outputs) - 1);
        matrix.codes[row] = codes + place * codes_pitch + matrix.byte;
        matrix.scale_row[row] = place * static_cast<unsigned>(scale_pitch);
        matrix.zero_row[row] = place * static_cast<unsigned>(zero_pitch);
    }
    const Tokens source(x, x_pitch, static_cast<int>(tokens), matrix.group_shift);
    const int low = quad * TOKEN_BYTES + 16 * place_of(quad_lane, 0, 0, quad);
    const int high = quad % 2 ? -64 : 64;

    Weights shares[AHEAD];
    float sums[TILES][4] = {};
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) {
        if (first + ahead < last) source.copy(buffers + ahead * BUFFER_BYTES, first + ahead);
        close_batch();  // an empty one too: batches are counted
    }
#pragma unroll
    for (int ahead = 0; ahead < AHEAD; ++ahead)
        if (first + ahead < last) matrix.fetch(shares[ahead], first + ahead);
    for (int start = first; start < last; start += AHEAD) {
#pragma unroll
        for (int ahead = 0; ahead < AHEAD; ++ahead) {
            const int chunk = start + ahead;
            if (chunk >= last) break;
            const int following = chunk + STAGES - 1;
            await_batches<STAGES - 2>();
            __syncthreads();  // the chunk is there for all, and nobody reads the one before it any more
            if (following < last) source.copy(buffers + (following - first) % STAGES * BUFFER_BYTES, following);
            close_batch();
            multiply(sums, shares[ahead], buffers + (chunk - first) % STAGES * BUFFER_BYTES + low, high);
            if (chunk + AHEAD < last) matrix.fetch(shares[ahead], chunk + AHEAD);
        }
    }
    // The buffers serve once more: two blocks fill the 64 KiB of a Turing multiprocessor.
    if (gridDim.y > 1 && !add_up(sums, partials, counters, *reinterpret_cast<unsigned*>(buffers))) return;

    const int count = static_cast<int>(tokens), most = static_cast<int>(outputs), token = 2 * quad_lane;
    OUT* const target = out + token * out_pitch + output;
#pragma unroll
    for (int row = 0; row < LANE_ROWS; ++row) {
        if (output + 8 * row >= most) continue;
        const float shift = bias ? to_float(bias[output + 8 * row]) : 0.0f;
#pragma unroll
        for (int place = 0; place < 2 * TOKEN_TILES; ++place) {
            const int further = place / 2 * 8 + place % 2;
            if (token + further >= count) continue;
            OUT* const result = target + further * out_pitch + 8 * row;
            float sum = sums[row / 2 * TOKEN_TILES + place / 2][row % 2 * 2 + place % 2] + shift;
            if (add) sum += to_float(*result);
            *result = rounded<OUT>(sum);
        }
    }
}
