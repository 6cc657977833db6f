// out (T, O) += b (O,), in place.
//
// Law: one float32 addition per element, rounded once to OUT; b has type BIAS.
// Block: THREADS runs of RUN columns beside each other, for every gridDim.y-th token. A RUN of 8 needs O to be a multiple of 8
// and rows of `out`, and b, to be aligned to 16 bytes; a RUN of 1 needs nothing and gives the same bits.
// Launch: (O / (THREADS * RUN), at most T, 1) blocks of THREADS.

constexpr int THREADS = 256;

template <typename Number> struct alignas(RUN == 1 ? sizeof(Number) : 16) Numbers {
    Number at[RUN];
};

extern "C" __global__ void add_bias(OUT* out, integer out_pitch, const BIAS* bias, integer tokens, integer outputs) {
    await_earlier();
    const integer column = (static_cast<integer>(blockIdx.x) * THREADS + threadIdx.x) * RUN;
    if (column >= outputs) return;
    const Numbers<BIAS> added = *reinterpret_cast<const Numbers<BIAS>*>(bias + column);
    for (integer token = blockIdx.y; token < tokens; token += gridDim.y) {
        Numbers<OUT>* const place = reinterpret_cast<Numbers<OUT>*>(out + token * out_pitch + column);
        Numbers<OUT> numbers = *place;
#pragma unroll
        for (int number = 0; number < RUN; ++number)
            numbers.at[number] = rounded<OUT>(to_float(numbers.at[number]) + to_float(added.at[number]));
        *place = numbers;
    }
}
