// What kernels ask of emulated_runtime.cpp, and the types and macros of CUDA; it stands outside of every namespace.
#pragma once
// The C library's math.h alone: the C++ library's, with all that it includes, is half of what the compiler reads.
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "emulated_half.h"

#define __device__
#define __host__
#define __global__
#define __constant__ static const
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define alignas(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("emulated_shared"), used))

// Vectors of CUDA. Their alignment is checked wherever one is read or written through a pointer.
#define EMULATED_VECTORS(name, type)                                                              \
    struct name##1 { type x; };                                                                   \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                      \
    struct name##3 { type x, y, z; };                                                             \
    struct alignas(sizeof(type) > 4 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; };        \
    static inline name##2 make_##name##2(type x, type y) { return {x, y}; }                       \
    static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }            \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATED_VECTORS(char, signed char)
EMULATED_VECTORS(uchar, unsigned char)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(ushort, unsigned short)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(uint, unsigned)
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(longlong, long long)
EMULATED_VECTORS(ulonglong, unsigned long long)
EMULATED_VECTORS(double, double)
typedef uint3 dim3;

#define __builtin_assume(condition)
// Reading a launch's arguments is no access of the kernel's.
#define EMULATED_UNCHECKED __attribute__((no_sanitize("thread", "undefined")))

// `file` and `line` say where a call stands: a collective must be one and the same call for all.
#define EMULATED_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define EMULATED_HERE file, line

enum EmulatedShuffle { EMULATED_SHUFFLE_INDEX, EMULATED_SHUFFLE_UP, EMULATED_SHUFFLE_DOWN, EMULATED_SHUFFLE_XOR };
enum EmulatedVote { EMULATED_VOTE_BALLOT, EMULATED_VOTE_ANY, EMULATED_VOTE_ALL };
enum EmulatedBarrier { EMULATED_BARRIER, EMULATED_BARRIER_OR, EMULATED_BARRIER_AND, EMULATED_BARRIER_COUNT };

struct EmulatedPlace {
    uint3 thread, block, threads, blocks;
    unsigned char* dynamic_shared;
};
#define threadIdx (emulated_place.thread)
#define blockIdx (emulated_place.block)
#define blockDim (emulated_place.threads)
#define gridDim (emulated_place.blocks)

extern "C" {
extern EmulatedPlace emulated_place;
int emulated_barrier(int kind, int predicate, const char* file, int line);
void emulated_warp_barrier(unsigned mask, const char* file, int line);
unsigned long long emulated_shuffle(int kind, unsigned mask, unsigned long long value, int argument, int width,
                                    const char* file, int line);
unsigned emulated_vote(int kind, unsigned mask, int predicate, const char* file, int line);
void emulated_multiply_tiles(float* c, const unsigned* a, const unsigned* b, const char* file, int line);
void emulated_load_matrices(unsigned* result, const void* row, int transposed, const char* file, int line);
void emulated_copy_beside(void* shared, const void* global, unsigned nbytes, const char* file, int line);
void emulated_close_batch();
void emulated_await_batches(int under_way);
unsigned long long emulated_atomic_load(const void* address, int size, const char* file, int line);
void emulated_atomic_store(void* address, int size, unsigned long long value);
void emulated_trap(const char* file, int line);
}
