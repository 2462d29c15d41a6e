// Experts: rows that each meet weights of their own, against matmul by each of them; what is chosen, and what is read.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <array>
#include <limits>
#include <numeric>

#include "dense/tensor/nn.h"
#include "dense/tensor/quantised.h"
#include "dense/tensor/threads.h"
#include "tests/allocations.h"
#include "tests/arrays.h"
#include "tests/errors.h"

namespace dense {
namespace {

using Ids = std::vector<int32_t>;

// ---- which

TEST(TopK, GivesTheLargestInOrderOfEqualsTheOneInFront) {
  constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const std::tuple<Shape, std::vector<double>, int64_t, Ids> cases[] = {
      {{4}, {1, 3, 2, 0}, 1, {1}},
      {{2, 4}, {1, 3, 2, 0, -1, -2, -3, -4}, 3, {1, 2, 0, 0, 1, 2}},
      {{4}, {2, 5, 5, 2}, 4, {1, 2, 0, 3}},
      {{4}, {0, -0.0, 0, -0.0}, 2, {0, 1}},
      {{4}, {-inf, 3, inf, -inf}, 3, {2, 1, 0}},
      {{5}, {1, nan, inf, nan, -1}, 4, {1, 3, 2, 0}},
      {{3}, {5, 4, nan}, 2, {2, 0}},
      {{2, 1}, {7, nan}, 1, {0, 0}}};
  for (const auto& [shape, values, k, want] : cases)
    for (Dtype type : {Dtype::f32, Dtype::f64}) {
      Graph graph(1);
      const Tensor x = graph.input(shape, type), ids = top_k(x, k);
      for (size_t i = 0; i < values.size(); ++i)
        if (type == Dtype::f64) x.data<double>()[i] = values[i];
        else x.data<float>()[i] = float(values[i]);
      Plan plan({ids});
      plan.run();
      EXPECT_EQ(copy_of(plan.get<int32_t>(ids)), want) << name(type);
    }
}

TEST(TopK, IsThatOfSortedRowsOfAnyLayout) {
  Graph graph(1);
  std::mt19937 random(1);
  const Tensor x = graph.input({30, 40});
  const Array a = fill(x, random, 0, 8);  // and equal ones
  for (float& v : x.data<float>()) v = std::floor(v);
  for (int64_t k : {1, 2, 7, 30}) {
    const Tensor ids = top_k(x.t(), k);  // (40, k)
    const std::vector<double> got = numbers(ids);
    for (size_t row = 0; row < 40; ++row) {
      std::vector<int> order(30);
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, std::greater(), [&](int i) { return x.data<float>()[size_t(i) * 40 + row]; });
      for (size_t i = 0; i < size_t(k); ++i) EXPECT_EQ(got[row * size_t(k) + i], order[i]) << row;
    }
  }
}

TEST(TopK, PassesNoGradient) {
  Graph graph(1);
  const Tensor x = graph.input({3, 4});
  x.set({1.f, 2.f, 3.f, 4.f, 8.f, 7.f, 6.f, 5.f, 9.f, 9.f, 9.f, 9.f});
  EXPECT_EQ(grad(sum(cast(top_k(x, 2), Dtype::f32)), {x})[0].value(), std::vector<float>(12, 0));
  const Tensor chosen = take_along(x, top_k(x, 2));
  EXPECT_EQ(chosen.value(), (std::vector<float>{4, 3, 8, 7, 9, 9}));
  EXPECT_EQ(grad(sum(chosen), {x})[0].value(), (std::vector<float>{0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0}));
}

TEST(TakeAlong, MayTakeOneElementTwiceAndNoneElseMatters) {
  Graph graph(1);
  const Tensor x = graph.input({2, 3}), ids = graph.input({2, 4}, Dtype::i32), w = graph.input({2, 4});
  x.set({1.f, 2.f, std::numeric_limits<float>::quiet_NaN(), 4.f, std::numeric_limits<float>::infinity(), 6.f});
  ids.set({1, 1, 0, 1, 2, 0, 2, 2});
  w.set({1.f, 10.f, 100.f, 1000.f, 1.f, 10.f, 100.f, 1000.f});
  EXPECT_EQ(take_along(x, ids).value(), (std::vector<float>{2, 2, 1, 2, 6, 4, 6, 6}));
  EXPECT_EQ(grad(sum(take_along(x, ids) * w), {x})[0].value(), (std::vector<float>{100, 1011, 0, 10, 0, 1101}));
}

// ---- products

// Weights (K, N) as a page has them: stored in this type, as they are or transposed; and who owns them.
std::vector<Tensor> some_weights(Graph& graph, int experts, int64_t k, int64_t n, Dtype type, bool transposed) {
  std::vector<Tensor> all;
  std::mt19937 random(3);
  for (int e = 0; e < experts; ++e) {
    const Shape shape = transposed ? Shape{n, k} : Shape{k, n};
    const Tensor values = graph.input(shape, type == Dtype::f64 ? Dtype::f64 : Dtype::f32);
    fill(values, random);
    Tensor w = values;
    if (is_quantised(type)) {
      const Memory memory = zero_memory(quantised_bytes(type, n, k));
      quantise({values.data<float>().data(), Dtype::f32, n, k, transposed ? k : 1, transposed ? 1 : n}, type,
               memory.data, graph.threads());
      w = graph.external(shape, type, memory, "w");
    } else if (type != values.dtype()) {
      w = graph.input(shape, type);
      Plan({assign(w, values)}).run();
    }
    all.push_back(transposed ? w.t() : w);
  }
  return all;
}

// Some experts of none, all experts of some, all rows of one.
Ids some_ids(int64_t rows, int experts, int how) {
  std::mt19937 random{unsigned(how)};
  Ids ids(static_cast<size_t>(rows));
  for (int32_t& id : ids) id = how == 0 ? experts - 1 : int32_t(random() % unsigned(how == 1 ? 2 : experts));
  return ids;
}

TEST(Experts, GiveEachRowTheBitsOfMatmulByItsOwnWhateverElseIsThere) {
  constexpr int experts = 5;
  const std::array<int64_t, 3> sizes[] = {{1, 40, 30}, {6, 400, 33}, {50, 70, 1}, {150, 64, 200}};
  for (Dtype type : {Dtype::f32, Dtype::bf16, Dtype::f16, Dtype::q8, Dtype::q4, Dtype::f64})
    for (bool transposed : {false, true})
      for (bool streams : {false, true})
        for (const auto& [rows, k, n] : sizes)
          for (int how : {0, 1, 2}) {
            Graph graph(1 + how);
            graph.streams_weights = streams;
            std::mt19937 random(2);
            const Tensor x = graph.input({rows, k}, type == Dtype::f64 ? Dtype::f64 : Dtype::f32);
            const Tensor ids = graph.input({rows}, Dtype::i32);
            fill(x, random);
            const Ids which = some_ids(rows, experts, how);
            ids.set(std::span<const int32_t>(which));
            const std::vector<Tensor> weights = some_weights(graph, experts, k, n, type, transposed);
            std::vector<Tensor> outputs{expert_matmul(x, ids, weights)};
            for (const Tensor& w : weights) outputs.push_back(matmul(x, w));
            Plan plan(outputs);
            plan.run();
            const std::vector<double> got = numbers(plan, outputs[0]);
            std::vector<double> want;
            for (size_t row = 0; row < which.size(); ++row) {
              const std::vector<double> whole = numbers(plan, outputs[1 + size_t(which[row])]);
              want.insert(want.end(), whole.begin() + int64_t(row) * n, whole.begin() + (int64_t(row) + 1) * n);
            }
            ASSERT_TRUE(same_bits(got, want)) << name(type) << (transposed ? " (N, K) " : " (K, N) ") << rows
                                              << ", streams " << streams << ", ids " << how;
          }
}

TEST(Experts, TakeRowsThatAreRepeatedOrLieApart) {
  Graph graph(2);
  std::mt19937 random(4);
  const Tensor x = graph.input({3, 8, 6}), ids = graph.input({3, 6, 2}, Dtype::i32);
  fill(x, random);
  fill(ids, random, 0, 4);
  const std::vector<Tensor> weights = some_weights(graph, 4, 8, 5, Dtype::f32, true);
  const Tensor rows = repeat<"b c t -> b t k c", "k">(x, 2);  // columns of x
  const Tensor got = expert_matmul(rows, ids, weights);
  EXPECT_EQ(got.shape(), (Shape{3, 6, 2, 5}));
  EXPECT_EQ(got.value(), expert_matmul(rows * 1, ids, weights).value());
  const Tensor twice = repeat<"b t c -> b t k c", "k">(rearrange<"b c t -> b t c">(x) * 1, 2);  // rows, each twice
  EXPECT_EQ(expert_matmul(twice, ids, weights).value(), got.value());
}

TEST(Experts, AreProductsInBf16WhereMatmulIs) {
  Graph graph(2);
  std::mt19937 random(5);
  const Tensor x = graph.input({7, 20}), ids = graph.input({7}, Dtype::i32);
  fill(x, random);
  ids.set({1, 1, 1, 1, 1, 1, 1});
  graph.matmul_type = Dtype::bf16;
  const std::vector<Tensor> weights = some_weights(graph, 3, 20, 9, Dtype::f32, true);
  const Tensor got = expert_matmul(x, ids, weights), want = matmul(x, weights[1]);
  EXPECT_EQ(got.value(), want.value());
  const auto d = grad(sum(got * got), {x, weights[1], weights[2]}), e = grad(sum(want * want), {x, weights[1]});
  EXPECT_EQ(d[0].value(), e[0].value());
  EXPECT_EQ(d[1].value(), e[1].value());
  EXPECT_EQ(d[2].value(), std::vector<float>(180, 0));
}

// Of f32 weights: d by the rows and by each expert.
std::vector<std::vector<float>> gradients(int threads, const Ids& which, bool transposed, bool checkpoints) {
  Graph graph(threads);
  std::mt19937 random(6);
  const auto rows = int64_t(which.size()), k = int64_t{70}, n = int64_t{50};
  const Tensor x = graph.input({rows, k}), ids = graph.input({rows}, Dtype::i32), dy = graph.input({rows, n});
  fill(x, random), fill(dy, random);
  ids.set(std::span<const int32_t>(which));
  std::vector<Tensor> wrt{x};
  std::vector<Tensor> weights;
  for (Tensor w : some_weights(graph, 4, k, n, Dtype::f32, transposed)) {
    weights.push_back(w);
    wrt.push_back({&graph, transposed ? w.node().operands[0] : w.id()});
  }
  Tensor y;
  {
    const Checkpoint scope(graph, checkpoints);
    y = expert_matmul(x * 2, ids, weights) * dy;
  }
  const std::vector<Tensor> d = grad(sum(y), wrt);
  Plan plan(d);
  plan.run();
  std::vector<std::vector<float>> all;
  for (Tensor t : d) all.push_back(copy_of(plan.get<float>(t)));
  return all;
}

TEST(Experts, GradientsHaveTheSameBitsForAnyThreadsAndAfterACheckpoint) {
  for (bool transposed : {false, true})
    for (int how : {0, 1, 2}) {
      const Ids ids = some_ids(200, 4, how);
      const auto one = gradients(1, ids, transposed, false);
      EXPECT_EQ(gradients(2, ids, transposed, false), one);
      EXPECT_EQ(gradients(3, ids, transposed, true), one);
      for (int e = 0; e < 4; ++e) {
        const bool any = std::ranges::find(ids, e) != ids.end();
        EXPECT_EQ(one[size_t(e) + 1] != std::vector<float>(70 * 50, 0), any) << e;
      }
    }
}

TEST(Experts, AGradientIsThatOfMatmulOnTheRowsOfItsExpert) {
  const Ids ids = some_ids(200, 4, 2);
  const auto all = gradients(2, ids, true, false);
  for (int32_t e = 0; e < 4; ++e) {
    Ids own;
    for (int32_t id : ids) own.push_back(id == e ? e : (e + 1) % 4);
    EXPECT_EQ(gradients(1, own, true, false)[size_t(e) + 1], all[size_t(e) + 1]) << e;
  }
}

TEST(Experts, AnExpertThatLosesItsRowsGetsZeros) {
  Graph graph(2);
  std::mt19937 random(9);
  const Tensor x = graph.input({6, 4}), ids = graph.input({6}, Dtype::i32);
  fill(x, random);
  const std::vector<Tensor> weights = some_weights(graph, 2, 4, 3, Dtype::f32, false);
  const std::vector<Tensor> d = grad(sum(expert_matmul(x, ids, weights)), weights);
  Plan plan(d);
  for (int32_t e : {0, 1, 0}) {
    ids.set({e, e, e, e, e, e});
    plan.run();
    EXPECT_EQ(numbers(plan, d[size_t(1 - e)]), std::vector<double>(12, 0));
    EXPECT_NE(numbers(plan, d[size_t(e)]), std::vector<double>(12, 0));
  }
}

// Memory that nobody may read stands for the weights of the others.
TEST(Experts, ReadTheWeightsOfThoseThatAreChosenAlone) {
  const size_t bytes = 1 << 16;
  void* const page = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(page, MAP_FAILED);
  for (Dtype type : {Dtype::f32, Dtype::bf16, Dtype::q8, Dtype::q4})
    for (bool streams : {false, true}) {
      Graph graph(2);
      graph.streams_weights = streams;
      std::vector<Tensor> weights = some_weights(graph, 4, 64, 48, type, true);
      const Tensor forbidden = graph.external({48, 64}, type, {static_cast<std::byte*>(page), nullptr}, "others");
      weights[0] = weights[2] = forbidden.t();
      std::mt19937 random(7);
      const Tensor x = graph.input({4, 64}), ids = graph.input({4}, Dtype::i32);
      fill(x, random);
      ids.set({1, 3, 3, 1});
      Plan plan({expert_matmul(x, ids, weights)});
      plan.run();
      EXPECT_NE(plan.summary().find(streams || is_quantised(type) ? "expert matvec" : "expert matmul"),
                std::string::npos);
    }
  munmap(page, bytes);
}

TEST(Experts, RunsAllocateNothing) {
  for (bool streams : {false, true})
    for (int threads : {1, 2}) {
      Graph graph(threads);
      graph.streams_weights = streams;
      std::mt19937 random(8);
      const Tensor x = graph.input({60, 40}), ids = graph.input({60}, Dtype::i32);
      fill(x, random);
      const std::vector<Tensor> weights = some_weights(graph, 4, 40, 500, streams ? Dtype::q4 : Dtype::f32, true);
      const Tensor y = expert_matmul(x, ids, weights), chosen = top_k(y, 3);
      std::vector<Tensor> outputs{y, chosen};
      if (!streams)
        for (Tensor d : grad(sum(y * y), {x, weights[0], weights[3]})) outputs.push_back(d);
      Plan plan(outputs);
      plan.run();
      for (int i = 0; i < 3; ++i) {
        fill(ids, random, 0, 4);
        const size_t before = allocations();
        plan.run();
        EXPECT_EQ(allocations(), before);
      }
    }
}

TEST(Experts, ErrorsNameTheOperationAndTheShapes) {
  Graph graph(1);
  const Tensor x = graph.input({2, 3}), ids = graph.input({2}, Dtype::i32, "chosen"), w = graph.input({3, 4});
  const Tensor other = graph.input({3, 5}), stored = graph.input({4, 3}), half = graph.input({3, 4}, Dtype::bf16);
  const auto error = [&](Tensor rows, Tensor which, const std::vector<Tensor>& weights) {
    return error_of([&] { expert_matmul(rows, which, weights); });
  };
  EXPECT_EQ(error(x, ids, {}), "expert_matmul: expected one expert or more");
  EXPECT_EQ(error(x, x, {w}), "expert_matmul: (2, 3) and (2, 3): expected rows (..., K) and for each an i32 id");
  EXPECT_EQ(error(x, graph.input({3}, Dtype::i32), {w}),
            "expert_matmul: (2, 3) and (3): expected rows (..., K) and for each an i32 id");
  EXPECT_EQ(error(x, ids, {w, other}),
            "expert_matmul: (2, 3) and (3, 5): expected weights (K, N), of all experts the same");
  EXPECT_EQ(error(x, ids, {stored}),
            "expert_matmul: (2, 3) and (4, 3): expected weights (K, N), of all experts the same");
  EXPECT_EQ(error(x, ids, {w, stored.t()}), "expert_matmul: f32 and f32: expected weights of one type and layout");
  EXPECT_EQ(error(x, ids, {w, half}), "expert_matmul: f32 and bf16: expected weights of one type and layout");
  EXPECT_EQ(error_of([&] { top_k(x, 4); }), "top_k: (2, 3): expected as many in a row as are wanted, 1 or more, got 4");
  EXPECT_EQ(error_of([&] { top_k(x, 0); }), "top_k: (2, 3): expected as many in a row as are wanted, 1 or more, got 0");
  EXPECT_EQ(error_of([&] { take_along(x, ids); }),
            "take_along: (2, 3) and (2): expected (..., V) and i32 ids (..., k)");
  EXPECT_EQ(error_of([&] {
              const std::vector<Tensor> q8 = some_weights(graph, 2, 3, 4, Dtype::q8, true);
              grad(sum(expert_matmul(x, ids, q8)), {x});
            }),
            "grad: expected weights that are not quantised, got int8");
  Plan plan({expert_matmul(x, ids, std::array{w, w})});
  for (int32_t id : {2, -1}) {
    ids.set({0, id});
    EXPECT_EQ(error_of([&] { plan.run(); }), text("chosen: expected ids of 0 to 1, got ", id, " at 1"));
  }
}

}  // namespace
}  // namespace dense
