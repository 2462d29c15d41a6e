// The expected values are CPython 3.11.2's. For each seed, with r = random.Random(seed):
//   [r.random() for _ in range(3)], [r.gauss(0, 0.08) for _ in range(5)], v = list(range(1, 51)); r.shuffle(v),
//   [r.choices(range(8), [0, 1, 0, 2.5, 1e-3, 0, 4, 0])[0] for _ in range(24)], the last of 10,000 more r.random()
#include "examples/python_random.h"

#include <gtest/gtest.h>

#include <limits>

using microgpt_scalar::PythonRandom;

namespace {

struct Case {
  int64_t seed;
  std::vector<double> random, gauss;
  std::vector<int> shuffled;
  std::vector<size_t> choices;
  double much_later;
};
const Case cases[] = {
    {0,
     {0x1.b0580f98a7dbep-1, 0x1.84129978f9c1ap-1, 0x1.aeaa51052e978p-2},
     {-0x1.5f4e9f7e77e76p-8, 0x1.877e9d8fa9729p-4, -0x1.da317c81a6f8ep-4, 0x1.428c62e760a3ap-4, -0x1.ea4f5c7adfb43p-6},
     {30, 29, 25, 34, 36, 27, 24, 41, 12, 28, 32, 4,  6,  8,  43, 46, 13, 3,  1, 26, 2,  45, 42, 15, 16,
      18, 48, 21, 50, 11, 49, 23, 37, 31, 22, 5,  44, 20, 10, 39, 35, 17, 40, 7, 47, 19, 9,  33, 14, 38},
     {6, 6, 6, 6, 3, 3, 1, 3, 6, 3, 6, 6, 3, 1, 6, 3, 3, 3, 6, 1, 6, 3, 1, 6},
     0x1.d230ebc8e40c8p-2},
    {1,
     {0x1.132d8f91b7584p-3, 0x1.b1e2d5b3584f8p-1, 0x1.870d778409f13p-1},
     {-0x1.869076e73fadbp-9, 0x1.7f14e60757995p-4, -0x1.c414eb4f54afep-4, 0x1.28faf8b19dbacp-5, 0x1.186490e947fe7p-7},
     {19, 30, 23, 4,  13, 48, 6,  47, 5,  3,  36, 11, 9,  31, 40, 44, 10, 26, 20, 22, 12, 27, 43, 16, 42,
      33, 8,  17, 34, 24, 32, 14, 49, 46, 35, 37, 41, 50, 21, 7,  38, 15, 18, 29, 45, 1,  39, 28, 25, 2},
     {3, 6, 6, 6, 6, 6, 1, 3, 6, 3, 3, 6, 6, 6, 3, 3, 6, 6, 6, 3, 6, 1, 1, 6},
     0x1.0fd94b5d9708dp-1},
    {42,
     {0x1.4762f307200c5p-1, 0x1.99c6b5eeb206p-6, 0x1.19a1491f589dcp-2},
     {0x1.669c97b52d971p-6, 0x1.07cb46bcc56f4p-3, -0x1.33617097139c2p-4, -0x1.35c47b38d8ea8p-3, 0x1.2523a519b2664p-4},
     {16, 48, 30, 26, 8, 46, 43, 32, 17, 49, 10, 34, 31, 21, 19, 38, 24, 45, 44, 9,  20, 23, 12, 40, 42,
      3,  4,  41, 25, 7, 5,  37, 22, 28, 11, 1,  18, 29, 47, 27, 35, 13, 36, 50, 39, 33, 15, 14, 6,  2},
     {6, 3, 3, 6, 3, 3, 6, 6, 6, 1, 6, 6, 3, 3, 3, 6, 6, 3, 3, 6, 1, 6, 6, 3},
     0x1.6917352f0dd26p-1},
    {-7,
     {0x1.4b9ad0f953a6ep-2, 0x1.34f069651327p-3, 0x1.4d474883171ffp-1},
     {0x1.6cae10797dfcfp-4, 0x1.64f29ebe215adp-5, -0x1.2d1b14aca151p-6, 0x1.52925edd61801p-6, -0x1.69f957de9432ep-6},
     {11, 24, 13, 33, 34, 29, 23, 41, 47, 30, 1,  25, 2,  17, 32, 21, 12, 7, 20, 45, 49, 46, 22, 44, 31,
      19, 35, 18, 48, 14, 10, 9,  3,  40, 39, 26, 42, 43, 38, 15, 8,  37, 4, 50, 36, 6,  16, 5,  27, 28},
     {3, 3, 3, 6, 1, 3, 6, 3, 3, 6, 1, 6, 3, 3, 6, 3, 6, 1, 6, 6, 6, 3, 3, 6},
     0x1.12bd74a6e8fd4p-1},
    {int64_t{1} << 32,
     {0x1.ced31cb3df17p-4, 0x1.abdb5477a4f26p-2, 0x1.1139c02ebd38p-6},
     {-0x1.c4e158700057bp-4, -0x1.7efb185964d75p-4, -0x1.93628797c6eeep-5, 0x1.66c3f10233021p-4, -0x1.550686e937784p-5},
     {44, 38, 17, 47, 27, 7, 43, 35, 50, 45, 4,  26, 16, 19, 48, 14, 15, 46, 3,  6,  42, 40, 29, 37, 32,
      2,  24, 13, 1,  41, 5, 12, 34, 39, 10, 49, 23, 18, 36, 9,  20, 8,  11, 30, 31, 25, 22, 21, 33, 28},
     {6, 6, 3, 6, 3, 6, 3, 6, 6, 1, 1, 1, 1, 3, 3, 3, 6, 1, 1, 3, 3, 3, 6, 6},
     0x1.e7be6b6f8b25dp-1},
    {(int64_t{1} << 40) + 5,
     {0x1.023e2261153dcp-1, 0x1.130d0ad4f7578p-2, 0x1.da00b1c1c1612p-1},
     {-0x1.28b7c6d3fe7d1p-3, -0x1.d3a909152b5a1p-6, 0x1.4725f66b90686p-5, -0x1.5d0997a03f3d6p-3, 0x1.3224a2083eb28p-5},
     {14, 21, 32, 41, 45, 7, 10, 13, 1,  12, 35, 43, 17, 46, 24, 26, 20, 39, 18, 31, 33, 40, 37, 2,  11,
      34, 6,  27, 38, 23, 5, 19, 29, 22, 3,  28, 47, 4,  30, 15, 36, 8,  25, 48, 49, 50, 44, 42, 16, 9},
     {6, 6, 1, 6, 4, 6, 3, 6, 1, 3, 3, 6, 1, 3, 6, 1, 1, 3, 6, 3, 6, 6, 6, 3},
     0x1.bd95cc744ae34p-3},
    {INT64_MIN,
     {0x1.1b5fa2193586fp-1, 0x1.e198384d65bb9p-1, 0x1.ef9ab7f81e664p-3},
     {0x1.47d7cd8b5537ap-6, -0x1.bba5e38e29c83p-6, 0x1.39c9dbf3e1ccfp-9, -0x1.8370c9b813767p-4, -0x1.d6fe8584d1b6cp-4},
     {44, 48, 1,  29, 25, 47, 30, 41, 14, 15, 40, 20, 32, 4,  49, 37, 31, 27, 46, 7,  42, 34, 50, 19, 38,
      21, 5,  10, 35, 33, 9,  3,  18, 45, 8,  28, 22, 24, 26, 39, 17, 12, 11, 36, 23, 6,  43, 2,  16, 13},
     {6, 3, 6, 3, 3, 6, 3, 6, 6, 6, 3, 1, 1, 6, 6, 1, 3, 1, 6, 6, 3, 6, 3, 3},
     0x1.c4cc9cac8cef6p-1},
    {INT64_MAX,
     {0x1.443e8e5409ca6p-2, 0x1.43346b887de9dp-1, 0x1.9b6b765f6b847p-1},
     {-0x1.65249dd4d2e55p-4, 0x1.ae089bddade63p-6, -0x1.d9304d85bbb17p-6, -0x1.084d04858f328p-3, -0x1.48b4b02f6c7d6p-6},
     {23, 6,  20, 25, 29, 3,  14, 30, 1, 32, 42, 19, 49, 2,  9,  48, 10, 12, 33, 39, 16, 44, 45, 21, 46,
      50, 34, 28, 37, 17, 18, 24, 13, 5, 22, 38, 31, 47, 27, 43, 26, 36, 11, 15, 4,  8,  41, 35, 7,  40},
     {6, 6, 3, 3, 6, 6, 6, 3, 3, 6, 6, 3, 3, 6, 3, 6, 3, 6, 3, 6, 6, 6, 6, 1},
     0x1.ec72f249550f3p-1},
};
const std::vector<double> weights = {0, 1, 0, 2.5, 1e-3, 0, 4, 0};

TEST(PythonRandom, IsPythonsForEverySeed) {
  for (const Case& expected : cases) {
    SCOPED_TRACE(expected.seed);
    PythonRandom r(expected.seed);
    for (double x : expected.random) EXPECT_EQ(r.random(), x);
    for (double x : expected.gauss) EXPECT_EQ(r.gauss(0, 0.08), x);
    std::vector<int> shuffled(50);
    std::iota(shuffled.begin(), shuffled.end(), 1);
    r.shuffle(shuffled);
    EXPECT_EQ(shuffled, expected.shuffled);
    for (size_t i : expected.choices) EXPECT_EQ(r.choices(weights), i);
    for (int i = 1; i < 10000; ++i) r.random();
    EXPECT_EQ(r.random(), expected.much_later);
  }
}

TEST(PythonRandom, SeedingAgainStartsAnew) {
  PythonRandom r(1);
  r.gauss(0, 1);  // its second value is kept, and must be forgotten
  r.seed(cases[0].seed);
  for (double x : cases[0].random) EXPECT_EQ(r.random(), x);
  for (double x : cases[0].gauss) EXPECT_EQ(r.gauss(0, 0.08), x);
}

TEST(PythonRandom, ASeedAndItsNegativeAreTheSame) { EXPECT_EQ(PythonRandom(7).random(), PythonRandom(-7).random()); }

TEST(PythonRandom, ShufflesOfNoneOrOneDrawNothing) {
  PythonRandom r(42);
  std::vector<int> none, one = {1};
  r.shuffle(none);
  r.shuffle(one);
  EXPECT_EQ(r.random(), PythonRandom(42).random());
}

TEST(PythonRandom, ChoosesOnlyWhatHasWeight) {
  PythonRandom r(5);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(r.choices({0, 0, 1e-300, 0}), 2u);
  // Where random() * total rounds to the total, what remains is the last one.
  for (int i = 0; i < 100; ++i) EXPECT_EQ(r.choices({5e-324}), 0u);
}

TEST(PythonRandom, RefusesWeightsThatPythonRefuses) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  PythonRandom r(5);
  for (const std::vector<double>& bad : {std::vector<double>{}, {0, 0}, {-1}, {1, nan}, {1, inf}, {1, -inf}}) {
    EXPECT_THROW(r.choices(bad), dense::Error);
  }
}

}  // namespace
