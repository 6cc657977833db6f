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
// Block: OUTPUTS outputs and TOKENS tokens. A warp takes WARP_OUTPUTS of them, whose weights it decodes, and shares the
// tokens with TOKEN_WARPS - 1 others; it adds up all of a sum. COPY_WARPS more see to all copies, or, if there are none,
// every warp to some.
// Launch: (T / TOKENS, O / OUTPUTS, parts) blocks of THREADS, with `shared_bytes` (few_tokens.py) of them shared: x and w arrive
// STAGES - 2 chunks ahead of their use; the first PREFETCH chunks of w are asked for before the kernels before this one
// have ended. Blocks of other tokens are beside each other, and find w in the second-level cache. Several parts leave
// their sums in `partials`, and the last block of a place to arrive, by `counters`, adds them up.
//
// The chain of a sum's instructions, each waiting for the one before, is what a block's time is made of: 256 for 4,096
// inputs. So weights are read and decoded while it runs, across chunks too: a section is read before the one before it is
// multiplied. Inside a step of 16 inputs the order is free: of codes, lane l of a quad takes inputs 4 l .. 4 l + 3, which
// are one word of codes and 8 bytes of x, for its columns 2 l, 2 l + 1, 2 l + 8 and 2 l + 9 of a tile. A tile of the tensor
// cores has 16 outputs and 8 tokens, or, where a warp takes 8 outputs, 16 tokens and 8 outputs: so few outputs keep more
// warps busy, and each of them decodes half as much.

constexpr int ADDERS = OUTPUTS / WARP_OUTPUTS * TOKEN_WARPS * WARP;  // threads that multiply
constexpr int COPIERS = COPY_WARPS ? COPY_WARPS * WARP : ADDERS;      // threads that copy: others, or the same
constexpr int THREADS = COPY_WARPS ? ADDERS + COPIERS : ADDERS;
constexpr int EIGHTS = WARP_OUTPUTS / 8;           // of outputs, of a warp: a lane has one row of each
constexpr int TILES = TOKENS / 8 / TOKEN_WARPS;    // of eight tokens, of a warp
constexpr bool TURNED = EIGHTS == 1;               // whether a tile has 16 tokens and 8 outputs
constexpr int SUMS = TURNED ? (TILES + 1) / 2 : EIGHTS / 2 * TILES;  // of four, of a lane
constexpr int STEP = 16, CHUNK = BITS == 16 ? 128 : 256;  // inputs of one instruction, and at a time
constexpr int RUN_BYTES = 16;
// Bytes of a row of a chunk, and their runs: run n of row r lies in place n ^ (r % 8), so that eight rows fill all banks.
constexpr int ROW_BYTES = CHUNK * BITS / 8;
constexpr int TOKEN_BYTES = CHUNK * 2;
constexpr int TOKEN_PITCH = TOKEN_BYTES + (BITS == 16 ? 16 : 32);  // no two lanes read different words of a bank
constexpr int GROUPS = BITS == 16 ? 0 : CHUNK / GROUP, SCALES_BYTES = 2 * GROUPS;
constexpr int CODES_AT = TOKENS * TOKEN_PITCH, STAGE_BYTES = CODES_AT + OUTPUTS * ROW_BYTES;
// Scales, and zeros after them, come for some chunks at once: those of one alone are a fraction of a sector of memory, and
// each such piece takes the memory pipeline as long as a line. Chunks under way are of no more than so many batches.
constexpr int SECTOR = 32, BATCH = BITS == 16 ? 1 : SECTOR / SCALES_BYTES, BATCHES = (STAGES + BATCH - 1) / BATCH + 1;
constexpr int ZEROS_AT = OUTPUTS * SECTOR, BATCH_BYTES = 2 * ZEROS_AT, BATCHES_AT = STAGES * STAGE_BYTES;

// A section is what a warp reads ahead: whole steps, and where codes are planar whole groups.
constexpr int SECTION_STEPS = BITS == 4 && (GROUP == 128 || TURNED) ? 8 : 4;
constexpr int SECTIONS = CHUNK / STEP / SECTION_STEPS, SECTION_RUNS = SECTION_STEPS * BITS / 8;

struct alignas(8) Inputs {
    pair at[2];
};

struct alignas(16) Sums {
    float at[4];
};

// Weights of a warp's outputs in a section, as they are stored. A lane has its word of every run of row `quad` of each
// eight outputs, as `load_matrices` gives it.
struct Section {
    pair words[EIGHTS][SECTION_RUNS];
};

// What a lane's rows of a chunk are scaled and shifted by.
struct Scales {
#if BITS != 16
    struct alignas(2 * GROUPS) Row {
        half at[GROUPS];
    } scale[EIGHTS], zero[EIGHTS];
#endif
};

// Rows of a chunk, from global to shared memory, `bytes` of them at a time by a thread. Rows of w beyond the last one are
// read as it, and never stored; tokens beyond it are left out: nobody looks at their sums.
enum Kind { TOKEN_ROWS, CODE_ROWS, SCALE_ROWS };
template <Kind kind, int rows, int row_bytes, int bytes, int target_pitch> struct Rows {
    static constexpr int PIECES = row_bytes / bytes, COPIES = (rows * PIECES + COPIERS - 1) / COPIERS;
    const unsigned char* from;
    unsigned offsets[COPIES];  // of the thread's pieces; a block's rows lie within 4 GiB
    int last, wanted_pieces;
    Beside<bytes> under_way[COPIES];

    __device__ __forceinline__ void place(const void* first_row, integer pitch, int count) {
        from = static_cast<const unsigned char*>(first_row), last = count - 1;
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy)
            offsets[copy] = min(row_of(copy), last) * static_cast<unsigned>(pitch) + piece_of(copy) * bytes;
    }

    // Of each row the first `wanted` pieces.
    __device__ __forceinline__ void start(unsigned char* to, int chunk, int wanted) {
        wanted_pieces = wanted;
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy)
            under_way[copy].start(to + target(copy), from + chunk * row_bytes + offsets[copy], is_copied(copy));
    }

    __device__ __forceinline__ void arrive(unsigned char* to) {
#pragma unroll
        for (int copy = 0; copy < COPIES; ++copy) under_way[copy].arrive(to + target(copy), is_copied(copy));
    }

   private:
    static __device__ __forceinline__ int copier() { return COPY_WARPS ? threadIdx.x - ADDERS : threadIdx.x; }

    static __device__ __forceinline__ int row_of(int copy) { return (copier() + copy * COPIERS) / PIECES; }

    static __device__ __forceinline__ int piece_of(int copy) { return (copier() + copy * COPIERS) % PIECES; }

    __device__ __forceinline__ bool is_copied(int copy) const {
        if (kind == SCALE_ROWS ? piece_of(copy) >= wanted_pieces : wanted_pieces == 0) return false;
        if (kind == TOKEN_ROWS) return row_of(copy) <= last;
        return rows * PIECES % COPIERS == 0 || row_of(copy) < rows;
    }

    static __device__ __forceinline__ int target(int copy) {
        const int turn = kind == CODE_ROWS ? row_of(copy) & 7 : 0;
        return row_of(copy) * target_pitch + bytes * (piece_of(copy) ^ turn);
    }
};

// All that a chunk takes, on its way. `number`: of the block's own.
struct Chunk {
    Rows<TOKEN_ROWS, TOKENS, TOKEN_BYTES, RUN_BYTES, TOKEN_PITCH> tokens;
    Rows<CODE_ROWS, OUTPUTS, ROW_BYTES, RUN_BYTES, ROW_BYTES> codes;
#if BITS != 16
    Rows<SCALE_ROWS, OUTPUTS, SECTOR, SCALES_BYTES, SECTOR> scales, zeros;
#endif
    unsigned char* stages;
    int count;

    __device__ __forceinline__ void start(unsigned char* stage, int number) {
        codes.start(stage + CODES_AT, number, number < count);
#if BITS != 16
        if (number % BATCH == 0) {
            scales.start(batch_of(number), number / BATCH, count - number);
            zeros.start(batch_of(number) + ZEROS_AT, number / BATCH, count - number);
        }
#endif
        tokens.start(stage, number, number < count);
    }

    __device__ __forceinline__ void arrive(unsigned char* stage, int number) {
        codes.arrive(stage + CODES_AT);
#if BITS != 16
        if (number % BATCH == 0) {
            scales.arrive(batch_of(number));
            zeros.arrive(batch_of(number) + ZEROS_AT);
        }
#endif
        tokens.arrive(stage);
    }

    __device__ __forceinline__ unsigned char* batch_of(int number) const {
        return stages + BATCHES_AT + number / BATCH % BATCHES * BATCH_BYTES;
    }
};

// Two codes, in halves from 1024 on as 1024 + code or, in the upper nibble, 1024 + 16 code, as weights.
__device__ __forceinline__ pair weights_of(pair numbers, bool upper, pair scale, pair zero) {
    const pair codes = upper ? multiply_add(numbers, 0x2c002c00u, 0xd400d400u) : subtract(numbers, 0x64006400u);
    return multiply_add(codes, scale, zero);
}

// A lane's weights of one step and one of its rows: its first two inputs, then its last two.
__device__ __forceinline__ void decode(const Section& section, const Scales& scales, int number, int eight, int step,
                                       pair (&w)[2]) {
#if BITS == 16
    w[0] = section.words[eight][2 * step], w[1] = section.words[eight][2 * step + 1];
#else
    constexpr int group_runs = BITS == 4 ? GROUP / 32 : 1;
    const int group = (number * SECTION_STEPS + step) * STEP / GROUP, within = step % (2 * group_runs);
    const bool upper = BITS == 4 && within >= group_runs;
    const int run = BITS == 4 ? step / (2 * group_runs) * group_runs + within % group_runs : step;
    const unsigned word = section.words[eight][run];
    const pair scale = to_pair(scales.scale[eight].at[group], scales.scale[eight].at[group]);
    const pair zero = to_pair(scales.zero[eight].at[group], scales.zero[eight].at[group]);
#pragma unroll
    for (int half_word = 0; half_word < 2; ++half_word) {
        const unsigned bytes = half_word ? 0x4342u : 0x4140u;
        const pair numbers = BITS == 8 ? permute_bytes(word, 0x64646464u, bytes)
                                       : masked_or(permute_bytes(word, 0, bytes), upper ? 0x00f000f0u : 0x000f000fu,
                                                   0x64006400u);
        w[half_word] = weights_of(numbers, upper, scale, zero);
    }
#endif
}

// Whether this block is the last one of its outputs to arrive; its sums are then those of all parts. `arrived` is shared.
__device__ __forceinline__ bool add_up(float (&sums)[SUMS][4], float* partials, unsigned* counters, unsigned& arrived) {
    const unsigned place = blockIdx.y * gridDim.x + blockIdx.x, places = gridDim.y * gridDim.x;
    Sums* const parts = reinterpret_cast<Sums*>(partials) + threadIdx.x;
    if (threadIdx.x < ADDERS)
#pragma unroll
        for (int tile = 0; tile < SUMS; ++tile)
            parts[((blockIdx.z * places + place) * SUMS + tile) * ADDERS] =
                Sums{{sums[tile][0], sums[tile][1], sums[tile][2], sums[tile][3]}};
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) arrived = atomicAdd(counters + place, 1u) + 1;
    __syncthreads();
    if (arrived < gridDim.z || threadIdx.x >= ADDERS) return false;
    __threadfence();
    if (threadIdx.x == 0) counters[place] = 0;
    for (unsigned part = 0; part < gridDim.z; ++part)
#pragma unroll
        for (int tile = 0; tile < SUMS; ++tile) {
            const Sums other = parts[((part * places + place) * SUMS + tile) * ADDERS];
#pragma unroll
            for (int number = 0; number < 4; ++number)
                sums[tile][number] = part ? sums[tile][number] + other.at[number] : other.at[number];
        }
    return true;
}

// A lane's results, from its first output and its first token among those of its block.
struct Results {
    int output, token, outputs, tokens;
    bool add;

    template <typename Out>
    __device__ __forceinline__ void store(const float (&sums)[SUMS][4], Out* out, integer pitch, const void* bias,
                                          bool wide_bias) const {
        // Of a lane's outputs, and of its tokens, number n is so far from the first one.
        constexpr int MINE = TURNED ? 2 : EIGHTS, OUTPUT_STRIDE = TURNED ? 1 : 8;
        float shifts[MINE];
#pragma unroll
        for (int number = 0; number < MINE; ++number) {
            const int place = output + number * OUTPUT_STRIDE;
            shifts[number] = 0.0f;
            if (bias && place < outputs)
                shifts[number] = wide_bias ? static_cast<const float*>(bias)[place]
                                           : to_float(static_cast<const half*>(bias)[place]);
        }
#pragma unroll
        for (int sum = 0; sum < SUMS; ++sum)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                const int number = TURNED ? part % 2 : sum / TILES * 2 + part / 2;
                const int further = TURNED ? sum * 16 + part / 2 * 8 : sum % TILES * 8 + part % 2;
                const int place = output + number * OUTPUT_STRIDE;
                if (place >= outputs || token + further >= tokens || further >= 8 * TILES) continue;
                Out* const target = out + (token + further) * pitch + place;
                Out result = rounded<Out>(sums[sum][part]);
                if (add) result = rounded<Out>(to_float(result) + to_float(*target));
                if (bias) result = rounded<Out>(to_float(result) + shifts[number]);
                *target = result;
            }
    }
};

// Rows of `bytes`, on their way to the second-level cache.
__device__ __forceinline__ void prefetch(const void* first_row, integer pitch, int rows, int bytes) {
    const int sectors = (bytes + SECTOR - 1) / SECTOR;
    for (int place = threadIdx.x; place < rows * sectors; place += THREADS)
        prefetch(static_cast<const unsigned char*>(first_row) + place / sectors * pitch + place % sectors * SECTOR);
}

// Where threads of both kinds wait for each other.
__device__ __forceinline__ void meet() { __syncthreads(); }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear_few(const half* x, integer x_pitch, const unsigned char* codes, integer codes_pitch, const half* scale,
               integer scale_pitch, const half* zero, integer zero_pitch, const void* bias, integer wide_bias, void* out,
               integer out_pitch, integer wide_out, integer add, integer tokens, integer outputs, integer inputs,
               float* partials, unsigned* counters) {
    DYNAMIC_SHARED(stages);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, quad = lane / 4, quad_lane = lane % 4;
    const bool copies = !COPY_WARPS || warp >= ADDERS / WARP;
    const int first_row = warp / TOKEN_WARPS * WARP_OUTPUTS, token_part = warp % TOKEN_WARPS * TILES * 8;
    const int block_row = blockIdx.y * OUTPUTS, first_token = blockIdx.x * TOKENS;
    const int tokens_here = min(static_cast<int>(tokens) - first_token, TOKENS);
    const int rows = min(static_cast<int>(outputs) - block_row, OUTPUTS);
    const int chunks = static_cast<int>(inputs) / CHUNK;
    const int first = chunks * blockIdx.z / gridDim.z, count = chunks * (blockIdx.z + 1) / gridDim.z - first;
    const integer row_pitch = BITS == 16 ? 2 * codes_pitch : codes_pitch;
    codes += block_row * row_pitch + first * ROW_BYTES;
    scale += block_row * scale_pitch + first * GROUPS, zero += block_row * zero_pitch + first * GROUPS;
    // What the results are shifted by, which comes from memory and is needed when nothing is left to hide that.
    if (bias && blockIdx.x == 0) {
        const int bytes = wide_bias ? 4 : 2;
        prefetch(static_cast<const unsigned char*>(bias) + block_row * bytes, 0, 1, rows * bytes);
    }
#if PREFETCH
    // The first PREFETCH chunks of the rows, by one of the blocks that share them.
    if (blockIdx.x == 0) {
        const int some = min(PREFETCH, count);
        prefetch(codes, row_pitch, rows, some * ROW_BYTES);
#if BITS != 16
        prefetch(scale, 2 * scale_pitch, rows, some * SCALES_BYTES);
        prefetch(zero, 2 * zero_pitch, rows, some * SCALES_BYTES);
#endif
    }
#endif
    await_earlier();
    Chunk chunk_of;
    chunk_of.stages = stages, chunk_of.count = count;
    chunk_of.tokens.place(x + first_token * x_pitch + first * CHUNK, 2 * x_pitch, tokens_here);
    chunk_of.codes.place(codes, row_pitch, rows);
#if BITS != 16
    chunk_of.scales.place(scale, 2 * scale_pitch, rows);
    chunk_of.zeros.place(zero, 2 * zero_pitch, rows);
#endif

    // `load_matrices` gives four runs of eight rows, or two of sixteen. Where the lane's row of matrix lane / 8 lies among the
    // codes, and which place its first run has there.
    const int turn = (TURNED ? lane / 8 : lane / 16) ^ (lane & 7);
    const int codes_at = CODES_AT + (first_row + (TURNED ? 0 : lane / 8 % 2 * 8) + lane % 8) * ROW_BYTES;
    // Lanes of tokens that are not there read the last one's, which costs nothing.
    const int token_row = token_part + (TILES == 1 ? max(min(quad, tokens_here - 1 - token_part), 0) : quad);
    const int numbers_at = BITS == 16 ? (token_part + lane % 8) * TOKEN_PITCH + lane / 8 * RUN_BYTES
                                      : token_row * TOKEN_PITCH + 8 * quad_lane;

    const auto read = [&](Section& section, const unsigned char* stage, int number) {
        constexpr int rows_at_once = TURNED ? 1 : 2, runs_at_once = 4 / rows_at_once;
#pragma unroll
        for (int eight = 0; eight < EIGHTS; eight += rows_at_once)
#pragma unroll
            for (int run = 0; run < SECTION_RUNS; run += runs_at_once) {
                pair four[4];
                load_matrices(four, stage + codes_at + eight * 8 * ROW_BYTES +
                                        RUN_BYTES * (turn ^ (number * SECTION_RUNS + run)));
#pragma unroll
                for (int part = 0; part < 4; ++part)
                    section.words[eight + part % rows_at_once][run + part / rows_at_once] = four[part];
            }
    };
    const auto read_scales = [&](Scales& scales, int chunk) {
#if BITS != 16
        const unsigned char* const batch = chunk_of.batch_of(chunk) + chunk % BATCH * SCALES_BYTES;
#pragma unroll
        for (int eight = 0; eight < EIGHTS; ++eight) {
            const unsigned char* const row = batch + (first_row + eight * 8 + quad) * SECTOR;
            scales.scale[eight] = *reinterpret_cast<const Scales::Row*>(row);
            scales.zero[eight] = *reinterpret_cast<const Scales::Row*>(row + ZEROS_AT);
        }
#endif
    };

    float sums[SUMS][4] = {};
    const auto multiply = [&](const Section& section, const Scales& scales, const unsigned char* stage, int number) {
#if BITS == 16
        pair two[TILES][4];
#endif
#pragma unroll
        for (int step = 0; step < SECTION_STEPS; ++step) {
            pair w[EIGHTS][2];
            Inputs tokens_of[TILES];
#pragma unroll
            for (int eight = 0; eight < EIGHTS; ++eight) decode(section, scales, number, eight, step, w[eight]);
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const unsigned char* const place =
                    stage + numbers_at + tile * 8 * TOKEN_PITCH + 32 * (number * SECTION_STEPS + step);
#if BITS == 16
                if (step % 2 == 0) load_matrices(two[tile], place);
                tokens_of[tile] = Inputs{{two[tile][step % 2 * 2], two[tile][step % 2 * 2 + 1]}};
#else
                tokens_of[tile] = *reinterpret_cast<const Inputs*>(place);
#endif
            }
#pragma unroll
            for (int sum = 0; sum < SUMS; ++sum) {
                if (TURNED) {
                    const Inputs &upper = tokens_of[2 * sum], none = {{0, 0}};
                    const Inputs& lower = 2 * sum + 1 < TILES ? tokens_of[min(2 * sum + 1, TILES - 1)] : none;
                    multiply_tiles(sums[sum], {upper.at[0], lower.at[0], upper.at[1], lower.at[1]}, w[0]);
                } else {
                    const pair(&upper)[2] = w[min(sum / TILES * 2, EIGHTS - 1)];
                    const pair(&lower)[2] = w[min(sum / TILES * 2 + 1, EIGHTS - 1)];
                    multiply_tiles(sums[sum], {upper[0], lower[0], upper[1], lower[1]}, tokens_of[sum % TILES].at);
                }
            }
        }
    };

    if (copies)
        for (int ahead = 0; ahead < STAGES - 1; ++ahead) {
            chunk_of.start(stages + ahead * STAGE_BYTES, ahead);
            chunk_of.arrive(stages + ahead * STAGE_BYTES, ahead);
            close_batch();  // an empty one too: batches are counted
        }
    unsigned char* filled = stages + (STAGES - 2) * STAGE_BYTES;
    const auto after = [&](unsigned char* place) {
        return place == stages + (STAGES - 1) * STAGE_BYTES ? stages : place + STAGE_BYTES;
    };
    // The chunk after this one is there for all, and nobody reads the one before this any more.
    const auto await_next = [&](int chunk) {
        if (copies) {
            if (chunk) chunk_of.arrive(filled, chunk + STAGES - 2);
            await_batches<STAGES - 3>();
        }
        meet();
        if (copies) {
            filled = after(filled);
            chunk_of.start(filled, chunk + STAGES - 1);
            close_batch();
        }
    };
    await_batches<STAGES - 2>();
    meet();
    if (COPY_WARPS && copies) {
        for (int chunk = 0; chunk < count; ++chunk) await_next(chunk);
    } else {
        Section section;
        Scales scales;
        unsigned char* stage = stages;
        read(section, stage, 0);
        read_scales(scales, 0);
        for (int chunk = 0; chunk < count; ++chunk) {
            Section next;
            Scales next_scales;
            const unsigned char* const following = after(stage);
#pragma unroll
            for (int number = 0; number < SECTIONS; ++number) {
                if (number + 1 < SECTIONS) {
                    read(next, stage, number + 1);
                } else {
                    await_next(chunk);
                    read(next, following, 0);  // after the last chunk of whatever lies there, for nobody
                    read_scales(next_scales, chunk + 1);
                }
                multiply(section, scales, stage, number);
                section = next;
            }
            scales = next_scales;
            stage = const_cast<unsigned char*>(following);
        }
    }
    // The stages serve once more, for a counter.
    if (gridDim.z > 1) {
        __syncthreads();
        if (!add_up(sums, partials, counters, *reinterpret_cast<unsigned*>(stages))) return;
    }
    if (COPY_WARPS && copies) return;

    const int output = first_row + (TURNED ? 2 * quad_lane : quad), token = token_part + (TURNED ? quad : 2 * quad_lane);
    const Results results{output, token, rows, tokens_here, add != 0};
    const integer corner = first_token * out_pitch + block_row;
    const void* const shifts =
        bias ? static_cast<const unsigned char*>(bias) + block_row * static_cast<integer>(wide_bias ? 4 : 2) : nullptr;
    if (wide_out)
        results.store(sums, static_cast<float*>(out) + corner, out_pitch, shifts, wide_bias != 0);
    else
        results.store(sums, static_cast<half*>(out) + corner, out_pitch, shifts, wide_bias != 0);
}
