// CUDA's own functions, and what common.cuh writes in PTX or otherwise for a device alone, on top of emulated_calls.h;
// the rest of common.cuh is compiled as it is. It stands in one namespace with the kernels, so that it has no includes.

typedef long long integer;
typedef unsigned int pair;
struct alignas(2) half { unsigned short bits; };

constexpr int warpSize = 32;
#define DYNAMIC_SHARED(name) unsigned char* const name = emulated_place.dynamic_shared

// --- Halves. Differences of halves, and a product with a sum where it can still matter to a half, are exact in double:
// what is rounded once to a half is the true value. ---
static inline float to_float(half value) { return emulated_widened(value.bits); }
static inline float to_float(float value) { return value; }
static inline half to_half(float value) { return half{emulated_narrowed(value)}; }
static inline double emulated_part(pair both, int place) {
    return emulated_widened(static_cast<unsigned short>(both >> 16 * place));
}
static inline pair emulated_pair(double first, double second) {
    return emulated_narrowed(first) | static_cast<pair>(emulated_narrowed(second)) << 16;
}
static inline pair subtract(pair a, pair b) {
    return emulated_pair(emulated_part(a, 0) - emulated_part(b, 0), emulated_part(a, 1) - emulated_part(b, 1));
}
static inline pair multiply_add(pair a, pair b, pair c) {
    return emulated_pair(emulated_part(a, 0) * emulated_part(b, 0) + emulated_part(c, 0),
                         emulated_part(a, 1) * emulated_part(b, 1) + emulated_part(c, 1));
}

// --- Bits ---
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
    unsigned result = 0;
    for (int place = 0; place < 4; ++place) {
        unsigned nibble = selector >> 4 * place & 15;
        unsigned byte = bytes >> 8 * (nibble & 7) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * place;
    }
    return result;
}
static inline int __popc(unsigned value) { return __builtin_popcount(value); }
static inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
static inline int __clz(int value) { return value ? __builtin_clz(value) : 32; }
static inline int __clzll(long long value) { return value ? __builtin_clzll(value) : 64; }
static inline int __ffs(int value) { return __builtin_ffs(value); }
static inline int __ffsll(long long value) { return __builtin_ffsll(value); }
static inline unsigned __brev(unsigned value) {
    unsigned result = 0;
    for (int bit = 0; bit < 32; ++bit) result |= (value >> bit & 1u) << (31 - bit);
    return result;
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<unsigned long long>(a) * b >> 32);
}
template <typename To, typename From> static inline To emulated_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To result;
    __builtin_memcpy(&result, &value, sizeof result);
    return result;
}
static inline int __float_as_int(float value) { return emulated_bits<int>(value); }
static inline unsigned __float_as_uint(float value) { return emulated_bits<unsigned>(value); }
static inline float __int_as_float(int value) { return emulated_bits<float>(value); }
static inline float __uint_as_float(unsigned value) { return emulated_bits<float>(value); }
static inline long long __double_as_longlong(double value) { return emulated_bits<long long>(value); }
static inline double __longlong_as_double(long long value) { return emulated_bits<double>(value); }

// --- Numbers ---
#define EMULATED_MIN_MAX(type)                                                  \
    static inline type min(type a, type b) { return b < a ? b : a; }            \
    static inline type max(type a, type b) { return a < b ? b : a; }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)
static inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
static inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
static inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
static inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

static inline float rsqrtf(float value) { return static_cast<float>(1 / sqrt(static_cast<double>(value))); }
#define __expf expf
#define __logf logf
static inline pair twice_first(pair both) { return __byte_perm(both, both, 0x1010); }
static inline pair twice_second(pair both) { return __byte_perm(both, both, 0x3232); }
static inline unsigned masked_or(unsigned value, unsigned mask, unsigned bits) { return (value & mask) | bits; }
static inline float power_of_two(float value) {
    float power = exp2f(value);
    return power < 1.17549435e-38f ? 0.0f : power;  // as the device's instruction has it; NaN stays NaN
}
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float value) { return sqrtf(value); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline float __frcp_rn(float value) { return 1 / value; }
static inline float __int2float_rn(int value) { return static_cast<float>(value); }
static inline float __uint2float_rn(unsigned value) { return static_cast<float>(value); }
static inline float __double2float_rn(double value) { return static_cast<float>(value); }
static inline float __saturatef(float value) { return value > 0 ? fminf(value, 1) : 0; }

// Whole numbers from floats: beyond the ends the nearest end, 0 for NaN, as the device has it.
static inline int emulated_int(double value) {
    if (value != value) return 0;
    return value >= 2147483647.0 ? 2147483647 : value <= -2147483648.0 ? -2147483647 - 1 : static_cast<int>(value);
}
static inline unsigned emulated_unsigned(double value) {
    return !(value > 0) ? 0 : value >= 4294967295.0 ? 4294967295u : static_cast<unsigned>(value);
}
static inline int __float2int_rn(float value) { return emulated_int(rintf(value)); }
static inline int __float2int_rz(float value) { return emulated_int(truncf(value)); }
static inline int __float2int_rd(float value) { return emulated_int(floorf(value)); }
static inline int __float2int_ru(float value) { return emulated_int(ceilf(value)); }
static inline unsigned __float2uint_rn(float value) { return emulated_unsigned(rintf(value)); }
static inline unsigned __float2uint_rz(float value) { return emulated_unsigned(truncf(value)); }
static inline unsigned __float2uint_rd(float value) { return emulated_unsigned(floorf(value)); }

// --- Collectives ---
static inline void __syncthreads(EMULATED_CALLER) { emulated_barrier(EMULATED_BARRIER, 0, EMULATED_HERE); }
static inline int __syncthreads_or(int predicate, EMULATED_CALLER) {
    return emulated_barrier(EMULATED_BARRIER_OR, predicate, EMULATED_HERE);
}
static inline int __syncthreads_and(int predicate, EMULATED_CALLER) {
    return emulated_barrier(EMULATED_BARRIER_AND, predicate, EMULATED_HERE);
}
static inline int __syncthreads_count(int predicate, EMULATED_CALLER) {
    return emulated_barrier(EMULATED_BARRIER_COUNT, predicate, EMULATED_HERE);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATED_CALLER) {
    emulated_warp_barrier(mask, EMULATED_HERE);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_CALLER) {
    return emulated_vote(EMULATED_VOTE_BALLOT, mask, predicate, EMULATED_HERE);
}
static inline int __any_sync(unsigned mask, int predicate, EMULATED_CALLER) {
    return emulated_vote(EMULATED_VOTE_ANY, mask, predicate, EMULATED_HERE) != 0;
}
static inline int __all_sync(unsigned mask, int predicate, EMULATED_CALLER) {
    return emulated_vote(EMULATED_VOTE_ALL, mask, predicate, EMULATED_HERE) != 0;
}
template <typename T>
static inline T emulated_shuffled(int kind, unsigned mask, T value, int argument, int width, EMULATED_CALLER) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 4 or 8 bytes");
    unsigned long long bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = emulated_shuffle(kind, mask, bits, argument, width, EMULATED_HERE);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}
#define EMULATED_SHUFFLE(name, kind, argument)                                                         \
    template <typename T>                                                                              \
    inline T name(unsigned mask, T value, argument given, int width = warpSize, EMULATED_CALLER) {     \
        return emulated_shuffled(kind, mask, value, static_cast<int>(given), width, EMULATED_HERE);    \
    }
EMULATED_SHUFFLE(__shfl_sync, EMULATED_SHUFFLE_INDEX, int)
EMULATED_SHUFFLE(__shfl_up_sync, EMULATED_SHUFFLE_UP, unsigned)
EMULATED_SHUFFLE(__shfl_down_sync, EMULATED_SHUFFLE_DOWN, unsigned)
EMULATED_SHUFFLE(__shfl_xor_sync, EMULATED_SHUFFLE_XOR, int)
static inline void multiply_tiles(float (&c)[4], const pair (&a)[4], const pair (&b)[2], EMULATED_CALLER) {
    emulated_multiply_tiles(c, a, b, EMULATED_HERE);
}
static inline void load_matrices(pair (&result)[4], const void* row, EMULATED_CALLER) {
    emulated_load_matrices(result, row, 0, EMULATED_HERE);
}
static inline void load_matrices_transposed(pair (&result)[4], const void* row, EMULATED_CALLER) {
    emulated_load_matrices(result, row, 1, EMULATED_HERE);
}
static inline void copy_beside(void* shared, const void* global, EMULATED_CALLER) {
    emulated_copy_beside(shared, global, 16, EMULATED_HERE);
}
constexpr bool COPIES_BESIDE = EMULATED_COPIES_BESIDE;
template <int bytes> struct Beside {
#if EMULATED_COPIES_BESIDE
    template <int to = 0, int from = 0>
    void start(void* shared, const void* global, bool wanted, EMULATED_CALLER) {
        unsigned char* const target = static_cast<unsigned char*>(shared) + to;
        if (wanted) emulated_copy_beside(target, static_cast<const unsigned char*>(global) + from, bytes, EMULATED_HERE);
    }
    void arrive(void*, bool) {}
#else
    struct alignas(bytes) Words {
        unsigned at[bytes / 4];
    } held;
    template <int to = 0, int from = 0> void start(void*, const void* global, bool wanted) {
        if (wanted) held = *reinterpret_cast<const Words*>(static_cast<const unsigned char*>(global) + from);
    }
    void arrive(void* shared, bool wanted) {
        if (wanted) *static_cast<Words*>(shared) = held;
    }
#endif
};
static inline void await_earlier() {}
static inline void prefetch(const void* global) { *static_cast<const volatile unsigned char*>(global); }
static inline void close_batch() { emulated_close_batch(); }
template <int under_way> inline void await_batches() { emulated_await_batches(under_way); }
static inline void __trap(EMULATED_CALLER) { emulated_trap(EMULATED_HERE); }

// --- Memory that several threads change: one runs at a time, so every change is whole. Sums of floats have no order
// among threads, so there are none. ---
#define EMULATED_ATOMIC(name, result)                                                            \
    template <typename T, typename V> inline T name(T* address, V given, EMULATED_CALLER) {      \
        static_assert(T(0.5) == T(0), "whole numbers only");                                     \
        T old = static_cast<T>(emulated_atomic_load(address, sizeof(T), EMULATED_HERE));         \
        T value = static_cast<T>(given), changed = result;                                       \
        emulated_atomic_store(address, sizeof(T), static_cast<unsigned long long>(changed));     \
        return old;                                                                              \
    }
EMULATED_ATOMIC(atomicAdd, old + value)
EMULATED_ATOMIC(atomicSub, old - value)
EMULATED_ATOMIC(atomicMin, old < value ? old : value)
EMULATED_ATOMIC(atomicMax, old < value ? value : old)
EMULATED_ATOMIC(atomicAnd, old & value)
EMULATED_ATOMIC(atomicOr, old | value)
EMULATED_ATOMIC(atomicXor, old ^ value)
EMULATED_ATOMIC(atomicExch, value)
EMULATED_ATOMIC(atomicInc, old >= value ? T(0) : old + 1)
EMULATED_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
template <typename T, typename C, typename V> inline T atomicCAS(T* address, C compare, V given, EMULATED_CALLER) {
    T old = static_cast<T>(emulated_atomic_load(address, sizeof(T), EMULATED_HERE));
    if (old == static_cast<T>(compare))
        emulated_atomic_store(address, sizeof(T), static_cast<unsigned long long>(static_cast<T>(given)));
    return old;
}
static inline unsigned count_block(unsigned* counter, EMULATED_CALLER) { return atomicAdd(counter, 1u, EMULATED_HERE); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
template <typename T> inline T __ldg(const T* address) { return *address; }
template <typename T> inline T __ldcs(const T* address) { return *address; }
template <typename T> inline T __ldcg(const T* address) { return *address; }
template <typename T> inline void __stcs(T* address, T value) { *address = value; }
template <typename T> inline void __stcg(T* address, T value) { *address = value; }

// --- How a launch reaches a kernel: every argument is 8 bytes wide. ---
template <typename A> EMULATED_UNCHECKED static inline A emulated_argument(const unsigned char* bytes) {
    static_assert(sizeof(A) == 8, "every argument of a kernel is 8 bytes wide");
    A value;
    __builtin_memcpy(&value, bytes, sizeof value);
    return value;
}
template <size_t... number> struct emulated_numbers {};
template <size_t count, size_t... rest> struct emulated_count : emulated_count<count - 1, count - 1, rest...> {};
template <size_t... number> struct emulated_count<0, number...> {
    typedef emulated_numbers<number...> type;
};
template <typename... A, size_t... number>
EMULATED_UNCHECKED inline void emulated_call(void (*kernel)(A...), const unsigned char* bytes,
                                             emulated_numbers<number...>) {
    kernel(emulated_argument<A>(bytes + 8 * number)...);
}
template <typename... A>
EMULATED_UNCHECKED inline void emulated_start(void (*kernel)(A...), const unsigned char* bytes) {
    emulated_call(kernel, bytes, typename emulated_count<sizeof...(A)>::type());
}
