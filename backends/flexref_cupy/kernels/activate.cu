// x (T, F) = ACTIVATION(x), in place; ACTIVATION is a name of `spec.ACTIVATIONS`.
//
// Law: the function in float32, rounded once. NaN stays NaN. Products whose sum the compiler could fuse are written as
// fmaf or __fmul_rn, so that it chooses nowhere where to round.
// Block: THREADS runs of RUN columns beside each other, for every gridDim.y-th token. A RUN of 8 needs F to be a
// multiple of 8 and rows to be aligned to 16 bytes; a RUN of 1 needs nothing and gives the same bits.
// Launch: (F / (THREADS * RUN), at most T, 1) blocks of THREADS; rows without gaps may be one row.

#ifndef RUN
#define ACTIVATION relu
#define RUN 1
#endif

constexpr int THREADS = 256;

struct alignas(RUN == 1 ? 2 : 16) Halves {
    half at[RUN];
};

struct Functions {
    // A maximum of 0 and NaN would be 0.
    static __device__ __forceinline__ float relu(float x) { return x < 0 ? 0.0f : x; }

    static __device__ __forceinline__ float gelu(float x) {
        return x * fmaf(0.5f, erff(__fmul_rn(x, 0.707106781186547524f)), 0.5f);
    }

    // A square that is infinite gives the right limit.
    static __device__ __forceinline__ float gelu_tanh(float x) {
        const float cubic = x * fmaf(0.044715f, x * x, 1.0f);
        return x * fmaf(0.5f, tanhf(__fmul_rn(cubic, 0.797884560802865356f)), 0.5f);
    }

    static __device__ __forceinline__ float quick_gelu(float x) { return x * sigmoid(__fmul_rn(1.702f, x)); }

    static __device__ __forceinline__ float silu(float x) { return x * sigmoid(x); }

    static __device__ __forceinline__ float tanh(float x) { return tanhf(x); }

    // An exponential that is infinite gives the right limit.
    static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
};

extern "C" __global__ void activate(half* x, integer pitch, integer rows, integer width) {
    await_earlier();
    const integer column = (static_cast<integer>(blockIdx.x) * THREADS + threadIdx.x) * RUN;
    if (column >= width) return;
    for (integer row = blockIdx.y; row < rows; row += gridDim.y) {
        Halves* const place = reinterpret_cast<Halves*>(x + row * pitch + column);
        Halves numbers = *place;
#pragma unroll
        for (int number = 0; number < RUN; ++number)
            numbers.at[number] = to_half(Functions::ACTIVATION(to_float(numbers.at[number])));
        *place = numbers;
    }
}
