// SPDX-License-Identifier: Apache-2.0
//
// What native_kernel.cpp computes with: vectors of float, the exponential, elements and products.
// The only code that knows the instruction set.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

// ---- Vectors of float.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
// Accumulators of a product: kRows times two vectors, with operands within 32 registers.
constexpr int kRows = 8;
using Vector = __m512;
inline Vector load(const float* from) { return _mm512_load_ps(from); }
inline void store(float* to, Vector x) { _mm512_store_ps(to, x); }
inline Vector fill(float x) { return _mm512_set1_ps(x); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector multiply_subtract(Vector a, Vector b, Vector c) { return _mm512_fmsub_ps(a, b, c); }
inline Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
// The second operand if one is NaN.
inline Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector round(Vector x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// a * 2^n for whole n.
inline Vector scale_by_power(Vector a, Vector n) { return _mm512_scalef_ps(a, n); }
#elif defined(__AVX2__) && defined(__FMA__)
constexpr int kLanes = 8;
constexpr int kRows = 4;
using Vector = __m256;
inline Vector load(const float* from) { return _mm256_load_ps(from); }
inline void store(float* to, Vector x) { _mm256_store_ps(to, x); }
inline Vector fill(float x) { return _mm256_set1_ps(x); }
inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
inline Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector multiply_subtract(Vector a, Vector b, Vector c) { return _mm256_fmsub_ps(a, b, c); }
inline Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
inline Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector round(Vector x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Through the exponent's bits; n is -127 at least, which stands for zero.
inline Vector scale_by_power(Vector a, Vector n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23)));
}
#else
#error "Needs AVX-512, or AVX2 with FMA."
#endif

constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

// 2^x for x <= 0: relative error below 1e-7, zero below -127, NaN for NaN.
inline Vector exp2(Vector x) {
  x = maximum(fill(-127.0f), x);
  const Vector whole = round(x);
  const Vector f = subtract(x, whole);
  // Minimax polynomial of 2^f on [-0.5, 0.5], exact at 0; relative error 1.9e-8 without rounding.
  Vector y = fill(1.694841236e-4f);
  y = multiply_add(y, f, fill(1.343551102e-3f));
  y = multiply_add(y, f, fill(9.612637036e-3f));
  y = multiply_add(y, f, fill(5.550204437e-2f));
  y = multiply_add(y, f, fill(2.402269628e-1f));
  y = multiply_add(y, f, fill(6.931473028e-1f));
  y = multiply_add(y, f, fill(1.0f));
  return scale_by_power(y, whole);
}

// ---- Elements.

struct Bfloat16 {
  uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void convert(float x, float* to) { *to = x; }
inline void convert(float x, Bfloat16* to) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  // To nearest, ties to even; rounding must not turn a NaN into infinity.
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u
                                          : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// How scores are multiplied: one step of a dot product takes one `Step` of each operand. `spread`
// turns a token into its steps, `stride` apart.
struct FloatProduct {
  using Step = float;  // One element.
  static constexpr int kElements = 1;
  template <typename Element>
  static void spread(const Element* from, int64_t size, Step* to, int64_t stride) {
    for (int64_t d = 0; d < size; ++d) to[d * stride] = to_float(from[d]);
  }
  static Vector lanes(const Step* from) { return load(from); }
  static Vector accumulate(Vector sum, const Step* one, Vector lanes) {
    return multiply_add(fill(*one), lanes, sum);
  }
};

#if defined(__AVX512BF16__)
struct Bf16Product {
  using Step = uint32_t;  // Two neighbouring elements.
  static constexpr int kElements = 2;
  static void spread(const Bfloat16* from, int64_t size, Step* to, int64_t stride) {
    for (int64_t i = 0; i < size / 2; ++i) {
      std::memcpy(to + i * stride, from + 2 * i, sizeof(Step));
    }
    if (size % 2) to[size / 2 * stride] = from[size - 1].bits;
  }
  static Vector lanes(const Step* from) { return _mm512_castsi512_ps(_mm512_load_si512(from)); }
  static Vector accumulate(Vector sum, const Step* one, Vector lanes) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(*one)),
                            (__m512bh)_mm512_castps_si512(lanes));
  }
};
#endif

}  // namespace
