// SPDX-License-Identifier: Apache-2.0
// The normal numbers of normals.py: torch's own on a processor with AVX2, bit for bit, from the same generator.
//
// MT19937 (Matsumoto and Nishimura, 1998) gives words, whose 24 low bits are uniform numbers. Of each sixteen of these
// Box and Muller's transform makes sixteen normal ones, 8 of the cosine, 8 of the sine, with the polynomials of Cephes
// as torch evaluates them. Loops are plain, so that compilers can put their passes side by side.

#include <cstdint>
#include <cstring>

namespace {

constexpr int WORDS = 624, AHEAD = 397, BLOCK = 16;
constexpr int64_t CACHED = 2048;  // numbers, of whole blocks: what is written of these is read again while it is near

// How a torch.Generator lays its state out.
struct State {
    uint64_t seed;
    int32_t left, seeded;
    uint64_t next, words[WORDS];
};

struct Generator {
    uint32_t words[WORDS];
    int next;
};

inline uint32_t twist(uint32_t high, uint32_t low) {
    return ((high & 0x80000000u) | (low & 0x7fffffffu)) >> 1 ^ ((low & 1u) ? 0x9908b0dfu : 0u);
}

void renew(uint32_t *words) {
    for (int i = 0; i < WORDS - AHEAD; i++) words[i] = words[i + AHEAD] ^ twist(words[i], words[i + 1]);
    for (int i = WORDS - AHEAD; i < WORDS - 1; i++) words[i] = words[i + AHEAD - WORDS] ^ twist(words[i], words[i + 1]);
    words[WORDS - 1] = words[AHEAD - 1] ^ twist(words[WORDS - 1], words[0]);
}

void uniform(Generator &from, float *out, int64_t count) {
    while (count > 0) {
        if (from.next == WORDS) {
            renew(from.words);
            from.next = 0;
        }
        const int taken = count < WORDS - from.next ? static_cast<int>(count) : WORDS - from.next;
        const uint32_t *words = from.words + from.next;
        for (int i = 0; i < taken; i++) {
            uint32_t x = words[i];
            x ^= x >> 11;
            x ^= x << 7 & 0x9d2c5680u;
            x ^= x << 15 & 0xefc60000u;
            x ^= x >> 18;
            out[i] = static_cast<float>(static_cast<int32_t>(x & 0xffffffu)) * 0x1p-24f;
        }
        from.next += taken;
        out += taken;
        count -= taken;
    }
}

inline int32_t bits(float x) {
    int32_t of;
    std::memcpy(&of, &x, sizeof of);
    return of;
}

inline float number(int32_t bits) {
    float of;
    std::memcpy(&of, &bits, sizeof of);
    return of;
}

// Of a positive number that is not subnormal.
inline float logarithm(float of) {
    const float mantissa = number((bits(of) & 0x007fffff) | 0x3f000000);
    const bool low = mantissa < 0.707106781186547524f;
    const float exponent = static_cast<float>((bits(of) >> 23) - 126 - (low ? 1 : 0));
    const float x = (mantissa - 1.0f) + (low ? mantissa : 0.0f), square = x * x;
    float y = 7.0376836292e-2f;
    y = __builtin_fmaf(y, x, -1.1514610310e-1f);
    y = __builtin_fmaf(y, x, 1.1676998740e-1f);
    y = __builtin_fmaf(y, x, -1.2420140846e-1f);
    y = __builtin_fmaf(y, x, 1.4249322787e-1f);
    y = __builtin_fmaf(y, x, -1.6668057665e-1f);
    y = __builtin_fmaf(y, x, 2.0000714765e-1f);
    y = __builtin_fmaf(y, x, -2.4999993993e-1f);
    y = __builtin_fmaf(y, x, 3.3333331174e-1f);
    y = __builtin_fmaf(y * x, square, exponent * -2.12194440e-4f);
    y = __builtin_fmaf(square, -0.5f, y);
    return __builtin_fmaf(exponent, 0.693359375f, x + y);
}

// Two uniform numbers become two normal ones.
inline void transform(float &first, float &second, float scale) {
    const float radius = __builtin_sqrtf(-2.0f * logarithm(1.0f - first)), angle = 6.283185307179586f * second;
    const int32_t octant = (static_cast<int32_t>(angle * 1.27323954473516f) + 1) & ~1;
    const float turned = static_cast<float>(octant);
    float x = __builtin_fmaf(turned, -0.78515625f, angle);
    x = __builtin_fmaf(turned, -2.4187564849853515625e-4f, x);
    x = __builtin_fmaf(turned, -3.77489497744594108e-8f, x);
    const float square = x * x;
    float even = __builtin_fmaf(2.443315711809948e-5f, square, -1.388731625493765e-3f);
    even = __builtin_fmaf(even, square, 4.166664568298827e-2f);
    even = __builtin_fmaf(even * square, square, -0.5f * square) + 1.0f;
    float odd = __builtin_fmaf(-1.9515295891e-4f, square, 8.3321608736e-3f);
    odd = __builtin_fmaf(odd, square, -1.6666654611e-1f);
    odd = __builtin_fmaf(odd * square, x, x);
    const bool turn = octant & 2;  // by a right angle: sine and cosine change places
    const int32_t below = octant & 4 ? INT32_MIN : 0, left = (octant + 2) & 4 ? INT32_MIN : 0;  // signs
    first = __builtin_fmaf(radius * number(bits(turn ? odd : even) ^ left), scale, 0.0f);  // -0 becomes 0
    second = __builtin_fmaf(radius * number(bits(turn ? even : odd) ^ below), scale, 0.0f);
}

void transform(float *numbers, int64_t count, float scale) {
    for (int64_t at = 0; at + BLOCK <= count; at += BLOCK)
        for (int i = 0; i < BLOCK / 2; i++) transform(numbers[at + i], numbers[at + BLOCK / 2 + i], scale);
}

}  // namespace

// Writes count numbers, at least 16 of them, of standard deviation scale, and moves the state on.
extern "C" void fill(State *state, float *out, int64_t count, float scale) {
    Generator from;
    for (int i = 0; i < WORDS; i++) from.words[i] = static_cast<uint32_t>(state->words[i]);
    from.next = state->left == 1 ? WORDS : static_cast<int>(state->next);
    for (int64_t at = 0; at < count; at += CACHED) {
        const int64_t part = count - at < CACHED ? count - at : CACHED;
        uniform(from, out + at, part);
        transform(out + at, part, scale);
    }
    if (count % BLOCK) {  // the last sixteen anew, over some that stand already
        uniform(from, out + count - BLOCK, BLOCK);
        transform(out + count - BLOCK, BLOCK, scale);
    }
    for (int i = 0; i < WORDS; i++) state->words[i] = from.words[i];
    state->next = static_cast<uint64_t>(from.next);
    state->left = WORDS + 1 - from.next;
}
