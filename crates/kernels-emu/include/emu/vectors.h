// The vector types of CUDA, with the alignment that vector loads rely on.
#pragma once

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

#define EMU_VECTORS(T, NAME, ALIGN2, ALIGN4)                                           \
  struct NAME##1 { T x; };                                                             \
  struct alignas(ALIGN2) NAME##2 { T x, y; };                                          \
  struct NAME##3 { T x, y, z; };                                                       \
  struct alignas(ALIGN4) NAME##4 { T x, y, z, w; };                                    \
  inline NAME##1 make_##NAME##1(T x) { return {x}; }                                   \
  inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                           \
  inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }                   \
  inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint, 8, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)
#undef EMU_VECTORS
