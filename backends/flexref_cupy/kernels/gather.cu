// out (T, W) of type OUT: row t is row ids[t] - first of table (N, W) of type TABLE, where the table has that row.
//
// Law: the value itself, rounded once where OUT is the narrower type. Rows of `out` whose id lies outside
// [first, first + N) stay as they are.
// Block: THREADS runs of RUN columns beside each other, for every gridDim.y-th token. A RUN of 8 needs W to be a
// multiple of 8 and rows of both to be aligned to 16 bytes; a RUN of 1 needs nothing and gives the same bits.
// Launch: (W / (THREADS * RUN), at most T, 1) blocks of THREADS.

#ifndef RUN
#define TABLE half
#define OUT half
#define RUN 1
#endif

constexpr int THREADS = 256;

template <typename Number> struct alignas(RUN == 1 ? sizeof(Number) : 16) Numbers {
    Number at[RUN];
};

// A value in the type OUT; as it is, where that is its type.
__device__ __forceinline__ OUT converted(OUT value) { return value; }
template <typename Number> __device__ __forceinline__ OUT converted(Number value) {
    return rounded<OUT>(to_float(value));
}

extern "C" __global__ void gather(const TABLE* table, integer table_pitch, integer table_rows, const int* ids,
                                  integer first, OUT* out, integer out_pitch, integer tokens, integer width) {
    await_earlier();
    const integer column = (static_cast<integer>(blockIdx.x) * THREADS + threadIdx.x) * RUN;
    if (column >= width) return;
    for (integer token = blockIdx.y; token < tokens; token += gridDim.y) {
        const integer row = ids[token] - first;
        if (row < 0 || row >= table_rows) continue;
        const Numbers<TABLE> found = *reinterpret_cast<const Numbers<TABLE>*>(table + row * table_pitch + column);
        Numbers<OUT> numbers;
#pragma unroll
        for (int number = 0; number < RUN; ++number) numbers.at[number] = converted(found.at[number]);
        *reinterpret_cast<Numbers<OUT>*>(out + token * out_pitch + column) = numbers;
    }
}
