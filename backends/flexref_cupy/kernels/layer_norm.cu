// out (T, E) = (x - mean) / sqrt(variance + epsilon) * weight + bias along E; `out` may be x.
//
// Law: everything in float32, rounded once; the variance is that of the centred values. `weight` (E,) of type WEIGHT
// and `bias` (E,) of type BIAS may be missing (address 0), which is 1 and 0.
// Block: one token. A thread takes every blockDim.x-th RUN of 8 columns; its sums go over warps in a fixed order. So
// the bits follow from E and the size of the block alone: not from other tokens, nor from whether a run is aligned to
// 16 bytes and moves as a whole.
// HELD: runs that a thread keeps in registers, so that x is read once, and weight and bias before the token is there:
// E <= HELD * RUN * blockDim.x. With 0 any width will do, and x is read three times.
// WHOLE: E is a multiple of 8 and all rows are aligned to 16 bytes, so that there is no other way to read and write: the
// program is a quarter as long, and so is the time to fetch it, of which a kernel for few tokens mostly consists.
// Launch: (T, 1, 1) blocks of whole warps, at most MOST_THREADS.

#ifndef HELD
#define WEIGHT half
#define BIAS half
#define HELD 2
#define WHOLE 0
#endif

constexpr int RUN = 8;

struct Run {
    float at[RUN];
};

// A run as it is stored.
template <typename Number> struct alignas(16) Numbers {
    Number at[RUN];

    __device__ __forceinline__ Run widened() const {
        Run run;
#pragma unroll
        for (int number = 0; number < RUN; ++number) run.at[number] = to_float(at[number]);
        return run;
    }
};

template <typename Number> __device__ __forceinline__ bool moves_whole(const Number* place, int room) {
    return room >= RUN && (WHOLE || reinterpret_cast<unsigned long long>(place) % 16 == 0);
}

// The first RUN of `room` numbers; `missing` after the last, and for all of them where there is no place.
template <typename Number>
__device__ __forceinline__ Numbers<Number> read(const Number* place, int room, float missing) {
    if (moves_whole(place, room)) return *reinterpret_cast<const Numbers<Number>*>(place);
    Numbers<Number> numbers;
#pragma unroll
    for (int number = 0; number < RUN; ++number)
        numbers.at[number] = !WHOLE && number < room ? place[number] : rounded<Number>(missing);
    return numbers;
}

__device__ __forceinline__ void write(half* place, int room, const Run& run) {
    if (moves_whole(place, room)) {
        Numbers<half> numbers;
#pragma unroll
        for (int number = 0; number < RUN; ++number) numbers.at[number] = to_half(run.at[number]);
        *reinterpret_cast<Numbers<half>*>(place) = numbers;
    } else if (!WHOLE) {
#pragma unroll
        for (int number = 0; number < RUN; ++number)
            if (number < room) place[number] = to_half(run.at[number]);
    }
}

// The sum over all threads, the same bits in each; `sums` is shared memory that nothing else uses.
__device__ __forceinline__ float block_sum(float value, float* sums) {
    const int lane = threadIdx.x % WARP;
    value = warp_sum(value);
    if (lane == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    return warp_sum(lane < blockDim.x / WARP ? sums[lane] : 0.0f);
}

constexpr int MOST_THREADS = 1024;

extern "C" __global__ void __launch_bounds__(1024)
    layer_norm(const half* x, integer x_pitch, const WEIGHT* weight, const BIAS* bias, double epsilon, half* out,
               integer out_pitch, integer width) {
    __shared__ float sums[2][MOST_THREADS / WARP];
    const half* const source = x + blockIdx.x * x_pitch;
    half* const target = out + blockIdx.x * out_pitch;
    const int columns = static_cast<int>(width), step = blockDim.x * RUN, start = threadIdx.x * RUN;
    const int parts = HELD ? HELD : (columns + step - 1) / step;
    Numbers<half> held[HELD ? HELD : 1];
    Numbers<WEIGHT> factors[HELD ? HELD : 1];
    Numbers<BIAS> addends[HELD ? HELD : 1];
    const auto read_affine = [&](int part, int place) {
        const int column = start + part * step, room = columns - column;
        factors[place] = read(weight + column, weight ? room : 0, 1.0f);
        addends[place] = read(bias + column, bias ? room : 0, 0.0f);
    };
    if (HELD)  // no kernel writes weights: they come from memory while the kernel before this one ends
#pragma unroll
        for (int part = 0; part < parts; ++part) read_affine(part, part);
    await_earlier();

    float sum = 0;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
        const int column = start + part * step;
        const Numbers<half> numbers = read(source + column, columns - column, 0.0f);
        const Run run = numbers.widened();
#pragma unroll
        for (int number = 0; number < RUN; ++number) sum += run.at[number];
        if (HELD) held[part] = numbers;
    }
    const float mean = block_sum(sum, sums[0]) / static_cast<float>(columns);

    float squares = 0;
#pragma unroll
    for (int part = 0; part < parts; ++part) {
        const int column = start + part * step;
        const Run run = (HELD ? held[part] : read(source + column, columns - column, 0.0f)).widened();
#pragma unroll
        for (int number = 0; number < RUN; ++number) {
            const float centred = column + number < columns ? run.at[number] - mean : 0.0f;
            squares = fmaf(centred, centred, squares);
        }
    }
    const float variance = block_sum(squares, sums[1]) / static_cast<float>(columns);
    const float root = 1.0f / sqrtf(variance + static_cast<float>(epsilon));

#pragma unroll
    for (int part = 0; part < parts; ++part) {
        const int column = start + part * step, room = columns - column;
        if (room <= 0) continue;
        if (!HELD) read_affine(part, 0);
        Run run = (HELD ? held[part] : read(source + column, room, 0.0f)).widened();
        const Run factor = factors[HELD ? part : 0].widened(), addend = addends[HELD ? part : 0].widened();
#pragma unroll
        for (int number = 0; number < RUN; ++number)
            run.at[number] = fmaf((run.at[number] - mean) * root, factor.at[number], addend.at[number]);
        write(target + column, room, run);
    }
}
