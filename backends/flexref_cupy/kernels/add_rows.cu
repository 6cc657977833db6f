// x (T, E) += rows ids (T,) of table (N, E) of type TABLE, in place.
//
// Law: one float32 addition per element, rounded once. A row that the table does not have is the caller's mistake:
// its token becomes NaN, which sampling refuses, and nothing outside the table is read.
// Block: THREADS runs of RUN columns beside each other, for every gridDim.y-th token. A RUN of 8 needs E to be a
// multiple of 8 and rows of both to be aligned to 16 bytes; a RUN of 1 needs nothing and gives the same bits.
// Launch: (E / (THREADS * RUN), at most T, 1) blocks of THREADS.

#ifndef RUN
#define TABLE half
#define RUN 1
#endif

constexpr int THREADS = 256;
constexpr half NOT_A_NUMBER = {0x7fff};

template <typename Number> struct alignas(RUN == 1 ? sizeof(Number) : 16) Numbers {
    Number at[RUN];
};

extern "C" __global__ void add_rows(half* x, integer x_pitch, const TABLE* table, integer table_pitch,
                                    integer table_rows, const int* ids, integer tokens, integer width) {
    await_earlier();
    const integer column = (static_cast<integer>(blockIdx.x) * THREADS + threadIdx.x) * RUN;
    if (column >= width) return;
    for (integer token = blockIdx.y; token < tokens; token += gridDim.y) {
        Numbers<half>* const place = reinterpret_cast<Numbers<half>*>(x + token * x_pitch + column);
        const integer row = ids[token];
        Numbers<half> numbers;
        if (row >= 0 && row < table_rows) {
            const Numbers<TABLE> added = *reinterpret_cast<const Numbers<TABLE>*>(table + row * table_pitch + column);
            numbers = *place;
#pragma unroll
            for (int number = 0; number < RUN; ++number)
                numbers.at[number] = to_half(to_float(numbers.at[number]) + to_float(added.at[number]));
        } else {
#pragma unroll
            for (int number = 0; number < RUN; ++number) numbers.at[number] = NOT_A_NUMBER;
        }
        *place = numbers;
    }
}
