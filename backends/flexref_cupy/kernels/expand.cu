// Weights (O, I) as halves, in `out` of their shape.
//
// Law: a weight of a group is code * scale + zero, with scales and zeros of type STORED: halves in one fused operation
// that rounds once, floats in a fused float32 operation whose result is rounded. Dense weights of type STORED are
// rounded once. linear_few.cu multiplies the same halves.
// Packing of 4-bit codes: planar; byte b of a group of n weights holds weight b and, in its high nibble, weight
// b + (n + 1) / 2. Codes of 8 bits are bytes.

constexpr unsigned LOW_NIBBLES = 0x0f0f0f0fu;

// code * scale + zero of two codes that are halves; scale and zero hold a number twice.
__device__ __forceinline__ pair weights_of(pair codes, half scale, half zero) {
    return multiply_add(codes, to_pair(scale, scale), to_pair(zero, zero));
}

__device__ __forceinline__ pair weights_of(pair codes, float scale, float zero) {
    return to_pair(fmaf(to_float(first_of(codes)), scale, zero), fmaf(to_float(second_of(codes)), scale, zero));
}

// What a thread reads at a time of aligned codes, and a run of eight weights: it writes two of them for codes of 4 bits.
struct alignas(8) Codes {
    unsigned words[2];
};

struct alignas(16) Run {
    pair pairs[4];
};

__device__ __forceinline__ Run run_of(Codes codes, int shift, STORED scale, STORED zero) {
    Run run;
#pragma unroll
    for (int word = 0; word < 2; ++word) {
        pair first, second;
        codes_to_pairs(codes.words[word] >> shift & LOW_NIBBLES, first, second);
        run.pairs[2 * word] = weights_of(first, scale, zero);
        run.pairs[2 * word + 1] = weights_of(second, scale, zero);
    }
    return run;
}

constexpr int THREADS = 256;
constexpr int UNITS = 4;  // under way in a thread at a time

// Rows of whole groups of 16 << group_shift weights, codes aligned to 8 bytes and `out` to 16. A unit is 8 bytes of
// codes, so that lanes beside each other write runs beside each other; `units` are those of a row.
// Launch: (rows * units / (THREADS * UNITS), 1, 1) blocks of THREADS.
extern "C" __global__ void expand_groups(const unsigned char* codes, integer codes_pitch, const STORED* scale,
                                         integer scale_pitch, const STORED* zero, integer zero_pitch, half* out,
                                         integer out_pitch, integer rows, integer units, integer group_shift) {
    await_earlier();
    const unsigned all = static_cast<unsigned>(rows * units);
    const unsigned start = blockIdx.x * (THREADS * UNITS) + threadIdx.x;
    Codes read[UNITS];
    STORED scales[UNITS], zeros[UNITS];
    half* targets[UNITS];
#pragma unroll
    for (int part = 0; part < UNITS; ++part) {
        const unsigned unit = start + part * THREADS;
        if (unit >= all) continue;
        const unsigned row = unit / static_cast<unsigned>(units), place = unit - row * static_cast<unsigned>(units);
        const unsigned group = place >> group_shift, within = place - (group << group_shift);
        read[part] = *reinterpret_cast<const Codes*>(codes + row * codes_pitch + 8 * place);
        scales[part] = scale[row * scale_pitch + group];
        zeros[part] = zero[row * zero_pitch + group];
        targets[part] = out + row * out_pitch + (group << (group_shift + 4)) + 8 * within;
    }
#pragma unroll
    for (int part = 0; part < UNITS; ++part) {
        if (start + part * THREADS >= all) continue;
        *reinterpret_cast<Run*>(targets[part]) = run_of(read[part], 0, scales[part], zeros[part]);
        half* const upper = targets[part] + (8 << group_shift);
        *reinterpret_cast<Run*>(upper) = run_of(read[part], 4, scales[part], zeros[part]);
    }
}

// Any groups, any alignment: a block takes a row, a thread its bytes one by one.
// Launch: (rows, 1, 1) blocks of any size.
extern "C" __global__ void expand_bytes(const unsigned char* codes, integer codes_pitch, const STORED* scale,
                                        integer scale_pitch, const STORED* zero, integer zero_pitch, half* out,
                                        integer out_pitch, integer width, integer group_size) {
    await_earlier();
    const integer row = blockIdx.x;
    const int size = static_cast<int>(group_size), groups = static_cast<int>(width) / size;
    const int tail = static_cast<int>(width) - groups * size, group_bytes = (size + 1) / 2;
    for (int byte = threadIdx.x; byte < groups * group_bytes + (tail + 1) / 2; byte += blockDim.x) {
        const int group = min(byte / group_bytes, groups), within = byte - group * group_bytes;
        const int values = group < groups ? size : tail, high = within + (values + 1) / 2;
        const unsigned both = codes[row * codes_pitch + byte];
        pair numbers, none;
        codes_to_pairs((both & 15u) | both >> 4 << 8, numbers, none);
        numbers = weights_of(numbers, scale[row * scale_pitch + group], zero[row * zero_pitch + group]);
        half* const target = out + row * out_pitch + static_cast<integer>(group) * size;
        target[within] = first_of(numbers);
        if (high < values) target[high] = second_of(numbers);
    }
}

// Codes of 8 bits in rows of whole groups of 8 << group_shift weights, codes aligned to 8 bytes and `out` to 16. A unit
// is 8 codes; `units` are those of a row.
// Launch: (rows * units / (THREADS * UNITS), 1, 1) blocks of THREADS.
extern "C" __global__ void expand_wide_groups(const unsigned char* codes, integer codes_pitch, const STORED* scale,
                                              integer scale_pitch, const STORED* zero, integer zero_pitch, half* out,
                                              integer out_pitch, integer rows, integer units, integer group_shift) {
    await_earlier();
    const unsigned all = static_cast<unsigned>(rows * units);
    const unsigned start = blockIdx.x * (THREADS * UNITS) + threadIdx.x;
    Codes read[UNITS];
    STORED scales[UNITS], zeros[UNITS];
    half* targets[UNITS];
#pragma unroll
    for (int part = 0; part < UNITS; ++part) {
        const unsigned unit = start + part * THREADS;
        if (unit >= all) continue;
        const unsigned row = unit / static_cast<unsigned>(units), place = unit - row * static_cast<unsigned>(units);
        const unsigned group = place >> group_shift;
        read[part] = *reinterpret_cast<const Codes*>(codes + row * codes_pitch + 8 * place);
        scales[part] = scale[row * scale_pitch + group];
        zeros[part] = zero[row * zero_pitch + group];
        targets[part] = out + row * out_pitch + 8 * place;
    }
#pragma unroll
    for (int part = 0; part < UNITS; ++part) {
        if (start + part * THREADS >= all) continue;
        Run run;
#pragma unroll
        for (int word = 0; word < 2; ++word) {
            pair first, second;
            codes_to_pairs(read[part].words[word], first, second);
            run.pairs[2 * word] = weights_of(first, scales[part], zeros[part]);
            run.pairs[2 * word + 1] = weights_of(second, scales[part], zeros[part]);
        }
        *reinterpret_cast<Run*>(targets[part]) = run;
    }
}

// Codes of 8 bits in any groups, at any alignment: a block takes a row, a thread its weights one by one.
// Launch: (rows, 1, 1) blocks of any size.
extern "C" __global__ void expand_wide_bytes(const unsigned char* codes, integer codes_pitch, const STORED* scale,
                                             integer scale_pitch, const STORED* zero, integer zero_pitch, half* out,
                                             integer out_pitch, integer width, integer group_size) {
    await_earlier();
    const integer row = blockIdx.x;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        const int group = column / static_cast<int>(group_size);
        pair numbers, none;
        codes_to_pairs(codes[row * codes_pitch + column], numbers, none);
        numbers = weights_of(numbers, scale[row * scale_pitch + group], zero[row * zero_pitch + group]);
        out[row * out_pitch + column] = first_of(numbers);
    }
}

// Dense weights (O, width): a block takes a row, a thread UNITS numbers at a time.
// Launch: (rows, 1, 1) blocks of any size.
extern "C" __global__ void expand_dense(const STORED* weights, integer weights_pitch, half* out, integer out_pitch,
                                        integer width) {
    await_earlier();
    const STORED* const source = weights + blockIdx.x * weights_pitch;
    half* const target = out + blockIdx.x * out_pitch;
    for (int start = threadIdx.x; start < width; start += UNITS * blockDim.x) {
        STORED read[UNITS];
#pragma unroll
        for (int part = 0; part < UNITS; ++part) {
            const int column = start + part * blockDim.x;
            if (column < width) read[part] = source[column];
        }
#pragma unroll
        for (int part = 0; part < UNITS; ++part) {
            const int column = start + part * blockDim.x;
            if (column < width) target[column] = rounded<half>(to_float(read[part]));
        }
    }
}
