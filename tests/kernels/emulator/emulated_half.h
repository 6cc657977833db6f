// Half precision by its bits, for kernels and runtime; it knows nothing of either.
#pragma once
#include <string.h>

// Every half is a float.
static inline float emulated_widened(unsigned short half) {
    unsigned size = half & 0x7fffu, bits = size << 13;
    float wide = static_cast<float>(size) * 5.9604644775390625e-8f;  // below the normal numbers: so many 2^-24
    if (size >= 0x7c00u)
        bits |= 0x7f800000u;
    else if (size >= 0x400u)
        bits += 112u << 23;
    else
        memcpy(&bits, &wide, sizeof bits);
    bits |= (half & 0x8000u) << 16;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// The nearest half, of two the even one; one NaN for all, as the device has it.
static inline unsigned short emulated_narrowed(double value) {
    unsigned long long bits;
    memcpy(&bits, &value, sizeof bits);
    unsigned sign = static_cast<unsigned>(bits >> 48) & 0x8000u;
    unsigned long long size = bits & 0x7fffffffffffffffull;
    if (size > 0x7ff0000000000000ull) return 0x7fff;
    int exponent = static_cast<int>(size >> 52) - 1023;
    if (exponent >= 16) return static_cast<unsigned short>(sign | 0x7c00u);
    if (exponent < -25) return static_cast<unsigned short>(sign);
    unsigned long long digits = (size & 0xfffffffffffffull) | 1ull << 52;
    int dropped = exponent < -14 ? 28 - exponent : 42;
    unsigned kept = static_cast<unsigned>(digits >> dropped);
    unsigned long long rest = digits & ((1ull << dropped) - 1), tie = 1ull << (dropped - 1);
    if (rest > tie || (rest == tie && (kept & 1))) ++kept;
    // The leading digit of a normal number adds one to its exponent, a carry out of the digits adds another.
    if (exponent >= -14) kept += static_cast<unsigned>(exponent + 14) << 10;
    return static_cast<unsigned short>(sign | kept);
}
