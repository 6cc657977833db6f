// out (T, O) = x (T, I) w (O, I)^T + b (O,), or that added to `out`, for few tokens: w stays in its groups of 4 or 8 bits.
//
// Law: a weight is the half nearest to code * scale + zero, as expand.cu gives it, or the stored half itself; its products
// with x are summed in float32 from the first input to the last, 16 at a time as one instruction of the tensor cores takes
// them, whatever else is beside the row. The sum is rounded to the type of `out`; then, where it is added, its sum with what
// `out` held; then that with b. On devices of compute capability 9 these are the bits of the library's products of the
// expanded matrix. With several parts the inputs are cut, and the parts' sums are added in float32, in their order.
// Shapes: BITS 4 or 8: I a multiple of 256; codes (O, I BITS / 8), those of 4 bits planar in groups of GROUP = 32, 64 or 128
// weights; scale and zero (O, I / GROUP). BITS 16: I a multiple of 128; w (O, I) is `codes`, counted in halves. Rows of x and
// of codes are aligned to 16 bytes, those of scale and zero to 512 / GROUP. Of b and `out` each is of float or of half.
// Block: 16 ROW_TILES outputs and 8 TOKEN_TILES tokens. A warp takes 16 WARP_ROWS outputs, whose weights it decodes, and
// shares the tokens with TOKEN_WARPS - 1 others; it adds up all of a sum.
// Launch: (T / (8 TOKEN_TILES), O / (16 ROW_TILES), parts) blocks of THREADS, with STAGES * STAGE_BYTES of dynamic shared
// memory: x and w arrive STAGES - 2 chunks ahead of their use. Blocks of other tokens are beside each other, and find w in
// the second-level cache. Several parts leave their sums in `partials`, and the last block of a place to arrive, by
// `counters`, adds them up.
//
// The chain of a sum's instructions, each waiting for the one before, is what a block's time is made of: 256 for 4,096
// inputs. So weights are read and decoded while it runs, across chunks too: a section is read before the one before it is
// multiplied. Inside a step of 16 inputs the order is free: of codes, lane l of a quad takes inputs 4 l .. 4 l + 3, which
// are one word of codes and 8 bytes of x, for its columns 2 l, 2 l + 1, 2 l + 8 and 2 l + 9 of a tile.

constexpr int THREADS = ROW_TILES / WARP_ROWS * TOKEN_WARPS * WARP;
constexpr int ROWS = 16, TOKENS = 8 * TOKEN_TILES;  // outputs of a tile, tokens of a block
constexpr int TILES = TOKEN_TILES / TOKEN_WARPS;    // of eight tokens, of a warp
constexpr int STEP = 16, CHUNK = BITS == 16 ? 128 : 256;  // inputs of one instruction, and at a time
constexpr int RUN_BYTES = 16;
// Bytes of a row of a chunk, and their runs: run n of row r lies in place n ^ (r % 8), so that eight rows fill all banks.
constexpr int ROW_BYTES = CHUNK * BITS / 8, RUNS = ROW_BYTES / RUN_BYTES;
constexpr int TOKEN_BYTES = CHUNK * 2, TOKEN_RUNS = TOKEN_BYTES / RUN_BYTES;
constexpr int TOKEN_PITCH = TOKEN_BYTES + (BITS == 16 ? 16 : 32);  // no two lanes read different words of a bank
constexpr int GROUPS = BITS == 16 ? 0 : CHUNK / GROUP, SCALES_BYTES = 2 * GROUPS;
constexpr int CODES_AT = TOKENS * TOKEN_PITCH, SCALES_AT = CODES_AT + ROW_TILES * ROWS * ROW_BYTES;
constexpr int ZEROS_AT = SCALES_AT + ROW_TILES * ROWS * SCALES_BYTES;
constexpr int STAGE_BYTES = ZEROS_AT + ROW_TILES * ROWS * SCALES_BYTES;

// A section is what a warp reads ahead: whole steps, and where codes are planar whole groups.
constexpr int SECTION_STEPS = BITS == 4 && GROUP == 128 ? 8 : 4;
constexpr int SECTIONS = CHUNK / STEP / SECTION_STEPS, UNITS = SECTION_STEPS * BITS / 16;
constexpr int SECTION_GROUPS = BITS == 16 ? 0 : (SECTION_STEPS * STEP + GROUP - 1) / GROUP;

struct alignas(8) Inputs {
    pair at[2];
};

struct alignas(16) Sums {
    float at[4];
};

// Weights of a warp's outputs in a section, as they are stored: of 16 rows and two runs each `load_matrices` gives a lane
// its word of its two rows, quad and quad + 8.
struct Section {
    pair words[WARP_ROWS][UNITS][4];
#if BITS != 16
    half scale[WARP_ROWS][SECTION_GROUPS][2], zero[WARP_ROWS][SECTION_GROUPS][2];
#endif
};

// Rows of a chunk, from global to shared memory, `bytes` of them at a time by a thread. Rows of w beyond the last one are
// read as it, and never stored; tokens beyond it are left out: nobody looks at their sums.
enum Kind { TOKEN_ROWS, CODE_ROWS, SCALE_ROWS };
template <Kind kind, int rows, int row_bytes, int bytes, int target_pitch> struct Rows {
    static constexpr int PIECES = row_bytes / bytes, COPIES = (rows * PIECES + THREADS - 1) / THREADS;
    const unsigned char* from;
    unsigned offsets[COPIES];  // of the thread's pieces; a block's rows lie within 4 GiB
    int last;
    Beside<bytes> under_way[COPIES];

    __device__ __forceinline__ void place(const void* first_row, integer pitch, int count) {
        from = static_cast<const unsigned char*>(first_row), last = count - 1;
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy)
            offsets[copy] = min(row_of(copy), last) * static_cast<unsigned>(pitch) + piece_of(copy) * bytes;
    }

    __device__ __forceinline__ void start(unsigned char* to, int chunk, bool wanted) {
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy)
            under_way[copy].start(to + target(copy), from + chunk * row_bytes + offsets[copy],
                                  wanted && is_copied(copy));
    }

    __device__ __forceinline__ void arrive(unsigned char* to) {
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy) under_way[copy].arrive(to + target(copy), is_copied(copy));
    }

   private:
    static __device__ __forceinline__ int row_of(int copy) { return (threadIdx.x + copy * THREADS) / PIECES; }

    static __device__ __forceinline__ int piece_of(int copy) { return (threadIdx.x + copy * THREADS) % PIECES; }

    __device__ __forceinline__ bool is_copied(int copy) const {
        if (kind == TOKEN_ROWS) return row_of(copy) <= last;
        return rows * PIECES % THREADS == 0 || row_of(copy) < rows;
    }

    static __device__ __forceinline__ int target(int copy) {
        const int turn = kind == CODE_ROWS ? row_of(copy) & 7 : 0;
        return row_of(copy) * target_pitch + bytes * (piece_of(copy) ^ turn);
    }
};

// All that a chunk takes, on its way.
struct Chunk {
    Rows<TOKEN_ROWS, TOKENS, TOKEN_BYTES, RUN_BYTES, TOKEN_PITCH> tokens;
    Rows<CODE_ROWS, ROW_TILES * ROWS, ROW_BYTES, RUN_BYTES, ROW_BYTES> codes;
#if BITS != 16
    Rows<SCALE_ROWS, ROW_TILES * ROWS, SCALES_BYTES, SCALES_BYTES, SCALES_BYTES> scales, zeros;
#endif

    __device__ __forceinline__ void start(unsigned char* stage, int chunk, bool wanted) {
        codes.start(stage + CODES_AT, chunk, wanted);
#if BITS != 16
        scales.start(stage + SCALES_AT, chunk, wanted);
        zeros.start(stage + ZEROS_AT, chunk, wanted);
#endif
        tokens.start(stage, chunk, wanted);
    }

    __device__ __forceinline__ void arrive(unsigned char* stage) {
        codes.arrive(stage + CODES_AT);
#if BITS != 16
        scales.arrive(stage + SCALES_AT);
        zeros.arrive(stage + ZEROS_AT);
#endif
        tokens.arrive(stage);
    }
};

// Two codes, in halves from 1024 on as 1024 + code or, in the upper nibble, 1024 + 16 code, as weights.
__device__ __forceinline__ pair weights_of(pair numbers, bool upper, pair scale, pair zero) {
    const pair codes = upper ? multiply_add(numbers, 0x2c002c00u, 0xd400d400u) : subtract(numbers, 0x64006400u);
    return multiply_add(codes, scale, zero);
}

// A lane's weights of one step: of rows quad and quad + 8, its first two inputs, then its last two.
__device__ __forceinline__ void decode(const Section& section, int rows, int step, pair (&w)[4]) {
#if BITS == 16
#pragma unroll
    for (int part = 0; part < 4; ++part) w[part] = section.words[rows][step][part];
#else
    constexpr int group_runs = BITS == 4 ? GROUP / 32 : 1;
    const int group = step * STEP / GROUP, within = step % (2 * group_runs);
    const bool upper = BITS == 4 && within >= group_runs;
    const int run = BITS == 4 ? step / (2 * group_runs) * group_runs + within % group_runs : step;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const unsigned word = section.words[rows][run / 2][run % 2 * 2 + row];
        const pair scale = to_pair(section.scale[rows][group][row], section.scale[rows][group][row]);
        const pair zero = to_pair(section.zero[rows][group][row], section.zero[rows][group][row]);
        pair numbers[2];
        if (BITS == 4) {
            const unsigned mask = upper ? 0x00f000f0u : 0x000f000fu;
            numbers[0] = masked_or(permute_bytes(word, 0, 0x4140u), mask, 0x64006400u);
            numbers[1] = masked_or(permute_bytes(word, 0, 0x4342u), mask, 0x64006400u);
        } else {
            numbers[0] = permute_bytes(word, 0x64646464u, 0x4140u);
            numbers[1] = permute_bytes(word, 0x64646464u, 0x4342u);
        }
        w[row] = weights_of(numbers[0], upper, scale, zero);
        w[2 + row] = weights_of(numbers[1], upper, scale, zero);
    }
#endif
}

// Whether this block is the last one of its outputs to arrive; its sums are then those of all parts. `arrived` is shared.
__device__ __forceinline__ bool add_up(float (&sums)[WARP_ROWS][TILES][4], float* partials, unsigned* counters,
                                       unsigned& arrived) {
    const unsigned place = blockIdx.y * gridDim.x + blockIdx.x, places = gridDim.y * gridDim.x;
    Sums* const parts = reinterpret_cast<Sums*>(partials) + threadIdx.x;
#pragma unroll
    for (int tile = 0; tile < WARP_ROWS * TILES; ++tile) {
        const float(&sum)[4] = sums[tile / TILES][tile % TILES];
        parts[((blockIdx.z * places + place) * WARP_ROWS * TILES + tile) * THREADS] =
            Sums{{sum[0], sum[1], sum[2], sum[3]}};
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(counters + place, 1u) + 1;
    __syncthreads();
    if (arrived < gridDim.z) return false;
    __threadfence();
    if (threadIdx.x == 0) counters[place] = 0;
    for (unsigned part = 0; part < gridDim.z; ++part)
#pragma unroll
        for (int tile = 0; tile < WARP_ROWS * TILES; ++tile) {
            const Sums other = parts[((part * places + place) * WARP_ROWS * TILES + tile) * THREADS];
            float(&sum)[4] = sums[tile / TILES][tile % TILES];
#pragma unroll
            for (int number = 0; number < 4; ++number)
                sum[number] = part ? sum[number] + other.at[number] : other.at[number];
        }
    return true;
}

// Where a lane's results belong in those of its block: its first row and token, and how many there are of each.
struct Results {
    int row, token, rows, tokens;
    bool add;

    template <typename Out>
    __device__ __forceinline__ void store(const float (&sums)[WARP_ROWS][TILES][4], Out* out, integer pitch,
                                          const void* bias, integer wide_bias, int block_row) const {
#pragma unroll
        for (int part = 0; part < 2 * WARP_ROWS; ++part) {
            const int place = row + 8 * part;
            if (place >= rows) continue;
            float shift = 0.0f;
            if (bias)
                shift = wide_bias ? static_cast<const float*>(bias)[block_row + place]
                                  : to_float(static_cast<const half*>(bias)[block_row + place]);
#pragma unroll
            for (int column = 0; column < 2 * TILES; ++column) {
                const int target_token = token + column / 2 * 8 + column % 2;
                if (target_token >= tokens) continue;
                Out* const target = out + target_token * pitch + place;
                Out result = rounded<Out>(sums[part / 2][column / 2][part % 2 * 2 + column % 2]);
                if (add) result = rounded<Out>(to_float(result) + to_float(*target));
                if (bias) result = rounded<Out>(to_float(result) + shift);
                *target = result;
            }
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear_few(const half* x, integer x_pitch, const unsigned char* codes, integer codes_pitch, const half* scale,
               integer scale_pitch, const half* zero, integer zero_pitch, const void* bias, integer wide_bias, void* out,
               integer out_pitch, integer wide_out, integer add, integer tokens, integer outputs, integer inputs,
               float* partials, unsigned* counters) {
    DYNAMIC_SHARED(stages);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, quad_lane = lane % 4;
    const int row_part = warp / TOKEN_WARPS * WARP_ROWS, token_part = warp % TOKEN_WARPS * TILES;
    const int block_row = blockIdx.y * (ROW_TILES * ROWS), first_token = blockIdx.x * TOKENS;
    const int count = min(static_cast<int>(tokens) - first_token, TOKENS);
    const int rows = min(static_cast<int>(outputs) - block_row, ROW_TILES * ROWS);
    const int chunks = static_cast<int>(inputs) / CHUNK;
    const int first = chunks * blockIdx.z / gridDim.z, last = chunks * (blockIdx.z + 1) / gridDim.z;

    Chunk chunk_of;
    const integer row_pitch = BITS == 16 ? 2 * codes_pitch : codes_pitch;
    chunk_of.tokens.place(x + first_token * x_pitch, 2 * x_pitch, count);
    chunk_of.codes.place(codes + block_row * row_pitch, row_pitch, rows);
#if BITS != 16
    chunk_of.scales.place(scale + block_row * scale_pitch, 2 * scale_pitch, rows);
    chunk_of.zeros.place(zero + block_row * zero_pitch, 2 * zero_pitch, rows);
#endif

    // Where the lane's row of matrix lane / 8 lies among the codes, and which place its first run has there.
    const int turn = (lane / 16) ^ (lane & 7);
    const int codes_at = CODES_AT + (row_part * ROWS + lane / 8 % 2 * 8 + lane % 8) * ROW_BYTES;
    const int numbers_at = BITS == 16 ? (token_part * 8 + lane % 8) * TOKEN_PITCH + lane / 8 * RUN_BYTES
                                      : (token_part * 8 + quad) * TOKEN_PITCH + 8 * quad_lane;

    const auto read = [&](Section& section, const unsigned char* stage, int number) {
#pragma unroll
        for (int row = 0; row < WARP_ROWS; ++row) {
#pragma unroll
            for (int unit = 0; unit < UNITS; ++unit)
                load_matrices(section.words[row][unit], stage + codes_at + row * ROWS * ROW_BYTES +
                                                            RUN_BYTES * (turn ^ 2 * (number * UNITS + unit)));
#if BITS != 16
#pragma unroll
            for (int group = 0; group < SECTION_GROUPS; ++group)
#pragma unroll
                for (int part = 0; part < 2; ++part) {
                    const int place = ((row_part + row) * ROWS + quad + 8 * part) * SCALES_BYTES +
                                      2 * (number * SECTION_STEPS * STEP / GROUP + group);
                    section.scale[row][group][part] = *reinterpret_cast<const half*>(stage + SCALES_AT + place);
                    section.zero[row][group][part] = *reinterpret_cast<const half*>(stage + ZEROS_AT + place);
                }
#endif
        }
    };

    float sums[WARP_ROWS][TILES][4] = {};
    const auto multiply = [&](const Section& section, const unsigned char* stage, int number) {
#if BITS == 16
        pair two[TILES][4];
#endif
#pragma unroll
        for (int step = 0; step < SECTION_STEPS; ++step) {
            pair w[WARP_ROWS][4];
#pragma unroll
            for (int row = 0; row < WARP_ROWS; ++row) decode(section, row, step, w[row]);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const unsigned char* const place =
                    stage + numbers_at + tile * 8 * TOKEN_PITCH + 32 * (number * SECTION_STEPS + step);
#if BITS == 16
                if (step % 2 == 0) load_matrices(two[tile], place);
                const Inputs eight = {{two[tile][step % 2 * 2], two[tile][step % 2 * 2 + 1]}};
#else
                const Inputs eight = *reinterpret_cast<const Inputs*>(place);
#endif
#pragma unroll
                for (int row = 0; row < WARP_ROWS; ++row) multiply_tiles(sums[row][tile], w[row], eight.at);
            }
        }
    };

    for (int ahead = 0; ahead < STAGES - 1; ++ahead) {
        chunk_of.start(stages + ahead * STAGE_BYTES, first + ahead, first + ahead < last);
        chunk_of.arrive(stages + ahead * STAGE_BYTES);
        close_batch();  // an empty one too: batches are counted
    }
    await_batches<STAGES - 2>();
    __syncthreads();
    Section section;
    read(section, stages, 0);
    unsigned char *stage = stages, *filled = stages + (STAGES - 2) * STAGE_BYTES;
    const auto after = [&](unsigned char* place) {
        return place == stages + (STAGES - 1) * STAGE_BYTES ? stages : place + STAGE_BYTES;
    };
    for (int chunk = first; chunk < last; ++chunk) {
        Section next;
        const unsigned char* const following = after(stage);
#pragma unroll
        for (int number = 0; number < SECTIONS; ++number) {
            if (number + 1 < SECTIONS) {
                read(next, stage, number + 1);
            } else {
                if (chunk > first) chunk_of.arrive(filled);
                await_batches<STAGES - 3>();
                __syncthreads();  // the next chunk is there for all, and nobody reads the one before this any more
                filled = after(filled);
                chunk_of.start(filled, chunk + STAGES - 1, chunk + STAGES - 1 < last);
                close_batch();
                read(next, following, 0);  // after the last chunk of whatever lies there, for nobody
            }
            multiply(section, stage, number);
            section = next;
        }
        stage = const_cast<unsigned char*>(following);
    }
    // The stages serve once more, for a counter.
    if (gridDim.z > 1) {
        __syncthreads();
        if (!add_up(sums, partials, counters, *reinterpret_cast<unsigned*>(stages))) return;
    }

    const Results results{row_part * ROWS + quad, token_part * 8 + 2 * quad_lane, rows, count, add != 0};
    const integer corner = first_token * out_pitch + block_row;
    if (wide_out)
        results.store(sums, static_cast<float*>(out) + corner, out_pitch, bias, wide_bias, block_row);
    else
        results.store(sums, static_cast<half*>(out) + corner, out_pitch, bias, wide_bias, block_row);
}
