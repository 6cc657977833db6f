// What the kernels share: half precision, tensor-core products, warp sums. It stands before the text of every kernel,
// so that none includes a header: NVRTC from a bare installation, without CUDA's headers, compiles them all.
//
// Every argument of a kernel is 8 bytes wide: a pointer, a `long long`, or a `double` (see kernel_source.py).

typedef long long integer;
typedef unsigned int pair;  // two halves: the first in the low 16 bits

constexpr int WARP = 32;
constexpr unsigned EVERY_LANE = 0xffffffffu;

struct alignas(2) half {
    unsigned short bits;
};

#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

__device__ __forceinline__ float to_float(half value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ half to_half(float value) {
    half narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
    return narrow;
}

// Rounds to the type that is named, so that a kernel may be written once for both.
template <typename T> __device__ __forceinline__ T rounded(float value);
template <> __device__ __forceinline__ half rounded<half>(float value) { return to_half(value); }
template <> __device__ __forceinline__ float rounded<float>(float value) { return value; }

__device__ __forceinline__ pair to_pair(half first, half second) {
    return static_cast<pair>(first.bits) | static_cast<pair>(second.bits) << 16;
}

__device__ __forceinline__ pair to_pair(float first, float second) { return to_pair(to_half(first), to_half(second)); }

__device__ __forceinline__ half first_of(pair both) { return half{static_cast<unsigned short>(both & 0xffffu)}; }

__device__ __forceinline__ half second_of(pair both) { return half{static_cast<unsigned short>(both >> 16)}; }

// a - b of both halves, each rounded once.
__device__ __forceinline__ pair subtract(pair a, pair b) {
    pair result;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

// a * b + c of both halves, each rounded once.
__device__ __forceinline__ pair multiply_add(pair a, pair b, pair c) {
    pair result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

// 2^value, off by at most 2^-22 of it, in one instruction; results below the normal numbers are 0.
__device__ __forceinline__ float power_of_two(float value) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
    return power;
}

// Bytes of the eight in (low, high), chosen by the four nibbles of `selector`.
__device__ __forceinline__ unsigned permute_bytes(unsigned low, unsigned high, unsigned selector) {
    return __byte_perm(low, high, selector);
}

// (value & mask) | bits in one instruction, where a compiler that sees two constants makes two.
__device__ __forceinline__ unsigned masked_or(unsigned value, unsigned mask, unsigned bits) {
    unsigned result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(value), "r"(mask), "r"(bits));
    return result;
}

// c (16, 8) += a (16, 16) b (16, 8) on a warp's tensor cores, in float32. Lane l holds, with row = l / 4 and
// column = 2 (l % 4): a[0], a[1]: a(row, column..), a(row + 8, column..); a[2], a[3]: the same at column + 8;
// b[0], b[1]: b(column.., row), b(column + 8.., row); c[0..1], c[2..3]: c(row, column..), c(row + 8, column..).
__device__ __forceinline__ void multiply_tiles(float (&c)[4], const pair (&a)[4], const pair (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// Four 8 x 8 matrices of halves from shared memory; lane l names row l % 8 of matrix l / 8. Lane l gets of matrix n
// in result[n] the elements (l / 4, 2 (l % 4) ..), or, transposed, (2 (l % 4) .., l / 4).
__device__ __forceinline__ void load_matrices(pair (&result)[4], const void* row) {
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(pair (&result)[4], const void* row) {
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3]) : "r"(address) : "memory");
}

// 16 bytes from global to shared memory, beside the arithmetic where the device can (sm_80 and later). What was
// started becomes a batch with `close_batch`; `await_batches<n>` waits until at most n of them are under way.
__device__ __forceinline__ void copy_beside(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

// Whether copies to shared memory go on beside the arithmetic.
constexpr bool COPIES_BESIDE = __CUDA_ARCH__ >= 800;

// `bytes` (16, 8 or 4) on their way to shared memory if they are wanted, as by `copy_beside`; where the device cannot, they
// wait in registers from `start` to `arrive`, which is called before the barrier after which they are read.
template <int bytes> struct Beside {
#if __CUDA_ARCH__ >= 800
    // `to` and `from`: so many bytes after the two addresses, which several copies may share.
    template <int to = 0, int from = 0>
    __device__ __forceinline__ void start(void* shared, const void* global, bool wanted) {
        unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
        if constexpr (bytes == 16)
            asm volatile("{ .reg .pred wanted; setp.ne.b32 wanted, %2, 0;\n"
                         "@wanted cp.async.cg.shared.global [%0+%3], [%1+%4], 16; }"
                         ::"r"(address), "l"(global), "r"(static_cast<unsigned>(wanted)), "n"(to), "n"(from) : "memory");
        else
            asm volatile("{ .reg .pred wanted; setp.ne.b32 wanted, %2, 0;\n"
                         "@wanted cp.async.ca.shared.global [%0+%3], [%1+%4], %5; }"
                         ::"r"(address), "l"(global), "r"(static_cast<unsigned>(wanted)), "n"(to), "n"(from), "n"(bytes) : "memory");
    }

    __device__ __forceinline__ void arrive(void*, bool) {}
#else
    struct alignas(bytes) Words {
        unsigned at[bytes / 4];
    } held;

    template <int to = 0, int from = 0>
    __device__ __forceinline__ void start(void*, const void* global, bool wanted) {
        if (wanted) held = *reinterpret_cast<const Words*>(static_cast<const unsigned char*>(global) + from);
    }

    __device__ __forceinline__ void arrive(void* shared, bool wanted) {
        if (wanted) *static_cast<Words*>(shared) = held;
    }
#endif
};

// What a kernel reads and writes from here on comes after all of the kernels before it; every kernel calls it, and before
// reads nothing that a kernel may have written. Where the device can (sm_90 and later), its blocks are started while the
// last kernel ends, and wait here. Once all of them are, those of the next kernel follow into what room they leave: they
// wait for this kernel's end, so for all kernels before it too.
__device__ __forceinline__ void await_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// What lies at an address, on its way to the second-level cache: nothing waits for it, and nothing is read.
__device__ __forceinline__ void prefetch(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
}

__device__ __forceinline__ void close_batch() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int under_way> __device__ __forceinline__ void await_batches() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(under_way) : "memory");
#endif
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int distance = WARP / 2; distance; distance /= 2) value += __shfl_xor_sync(EVERY_LANE, value, distance);
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
    for (int distance = WARP / 2; distance; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(EVERY_LANE, value, distance));
    return value;
}

// Where a row's records are, in bytes from an address that rows share: those of its first `shared` tokens, a multiple of
// 64, from `prefix` on; the later ones, from where the first would be if they all were in one place.
struct Place {
    integer own, prefix, shared;

    __device__ __forceinline__ integer of_first_token() const { return shared ? prefix : own; }
};

// Two parts of a sum of weighted values, each weighted against its own highest score: what each is worth against the
// higher one. The order is told: which product is rounded, and which is part of the sum.
struct Shares {
    float highest, first, second;

    __device__ __forceinline__ Shares(float first_highest, float second_highest) {
        const float nothing = -1.0f / 0.0f;
        highest = fmaxf(first_highest, second_highest);
        const float base = highest == nothing ? 0.0f : highest;
        first = power_of_two(first_highest - base), second = power_of_two(second_highest - base);
    }

    __device__ __forceinline__ float sum(float a, float b) const {
        return __fmaf_rn(b, second, __fmul_rn(a, first));
    }
};

// Four bytes, codes of 8 bits or of 4 in their low nibbles, as halves: those of bytes 0 and 1, and of bytes 2 and 3. A
// half from 1024 to 2047 has its integer in the last ten bits: 0x6400 | code is 1024 + code.
__device__ __forceinline__ void codes_to_pairs(unsigned codes, pair& first, pair& second) {
    first = subtract(permute_bytes(codes, 0x64646464u, 0x4140u), 0x64006400u);
    second = subtract(permute_bytes(codes, 0x64646464u, 0x4342u), 0x64006400u);
}

__device__ __forceinline__ pair low_halves(unsigned a, unsigned b) { return permute_bytes(a, b, 0x5410u); }

__device__ __forceinline__ pair high_halves(unsigned a, unsigned b) { return permute_bytes(a, b, 0x7632u); }

// The first half of a pair, twice, and the second: operands that an instruction names as they are, so that they cost none.
__device__ __forceinline__ pair twice_first(pair both) {
    pair result;
    asm("{ .reg .b16 first, second; mov.b32 {first, second}, %1; mov.b32 %0, {first, first}; }" : "=r"(result) : "r"(both));
    return result;
}

__device__ __forceinline__ pair twice_second(pair both) {
    pair result;
    asm("{ .reg .b16 first, second; mov.b32 {first, second}, %1; mov.b32 %0, {second, second}; }" : "=r"(result) : "r"(both));
    return result;
}

// Adds 1 to a counter that blocks share, and says what it was. Called by one thread of a block after a barrier: what the
// block wrote before is seen by the blocks that count later, after a barrier of theirs.
__device__ __forceinline__ unsigned count_block(unsigned* counter) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
    return before;
}

// Codes of 4 bits in the low nibbles of bytes 0 and 2, and in the high ones, as the halves nearest to
// code * scale + zero. Of the low nibble 0x6400 | code is 1024 + code; of the high one it is 1024 + 16 code.
__device__ __forceinline__ void numbers_of(unsigned codes, pair scale, pair zero, pair& low, pair& high) {
    const pair first = subtract(masked_or(codes, 0x000f000fu, 0x64006400u), 0x64006400u);
    const pair second = multiply_add(masked_or(codes, 0x00f000f0u, 0x64006400u), 0x2c002c00u, 0xd400d400u);
    low = multiply_add(first, scale, zero), high = multiply_add(second, scale, zero);
}
