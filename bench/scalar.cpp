// dense bench scalar: nanoseconds per operation of recorded graphs, forward and backward, beside a plain C interpreter.
#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <vector>

#include "bench/ceiling.h"
#include "bench/interpreter.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/progress.h"
#include "dense/dense.h"

namespace dense::cli {
namespace {

struct Config {
  int ops = 10'000, iterations = 10'000, lanes = 10'000, threads = 1;
  std::string precision = "f64", isa = "best";

  void fields(auto&& f) {
    f("ops", ops, "operations of the published graph", 1);
    f("iterations", iterations, "runs altogether; each batch of lanes starts where the last one's gradient leads", 1);
    f("lanes", lanes, "runs side by side", 1);
    f("precision", precision, "exact, f64 or f32");
    f("isa", isa, "instructions: avx512, avx2, portable, or the best this machine has");
    f("threads", threads, "threads of Dense; C has one", 1);
  }
};

constexpr int inputs = 100;

// A graph as both sides read it: nodes are the inputs, then what the operations append.
struct Graph {
  std::vector<Operation> operations = {};
  int nodes = inputs;
  double weight = 0;           // the output: all nodes times this, added up; 0: the last node
  double first = 0, step = 1;  // inputs of the first lane: first, first + step, ...

  void append(Opcode opcode, std::initializer_list<int> places) {
    operations.push_back({opcode, {}, nodes});
    std::copy(places.begin(), places.end(), operations.back().inputs);
    nodes += opcode == op_softmax ? 4 : 1;
  }
};

// `node(b)` chooses the operand that was published as nodes[-b].
void append_published(Graph& g, int operations, const auto& node) {
  for (int i = 0; i < operations; ++i) {
    switch (i % 4) {
      case 0: g.append(op_softplus, {node(10)}); break;
      case 1: g.append(op_sum, {node(30), node(25), node(20), node(15)}); break;
      case 2: g.append(op_mul, {node(20), node(10)}); break;
      case 3: g.append(op_softmax, {node(4), node(3), node(2), node(1)}); break;
    }
  }
}

// With the mean of all nodes for output gradients do not vanish.
Graph published(int operations, bool mean = false) {
  Graph g;
  append_published(g, operations, [&](int back) { return g.nodes - back; });
  if (mean) g.weight = 1.0 / g.nodes;
  return g;
}

// The same operations on any earlier nodes. From inputs between -1 and 1 a million of them reach 3e3 and 7e-169: nothing
// overflows or becomes denormal, so operands need not be chosen.
Graph random_graph(int operations) {
  Graph g{.first = -1, .step = 2.0 / (inputs - 1)};
  std::mt19937_64 random(1);
  append_published(g, operations, [&](int) { return int(random() % uint64_t(g.nodes)); });
  g.weight = 1.0 / g.nodes;
  return g;
}

Program record_and_compile(const Graph& g, Precision precision) {
  Tape tape;
  std::vector<Var> nodes;
  for (int i = 0; i < inputs; ++i) nodes.push_back(tape.input());
  for (const Operation& op : g.operations) {
    const int* in = op.inputs;
    const std::array x{nodes[in[0]], nodes[in[1]], nodes[in[2]], nodes[in[3]]};
    switch (op.opcode) {
      case op_softplus: nodes.push_back(softplus(x[0])); break;
      case op_sum: nodes.push_back(sum(x)); break;
      case op_mul: nodes.push_back(x[0] * x[1]); break;
      case op_softmax: std::ranges::copy(softmax(x), std::back_inserter(nodes)); break;
    }
  }
  const Var y = g.weight == 0 ? nodes.back() : g.weight * sum(nodes);
  return tape.compile(std::span(&y, 1), std::span(nodes).first(inputs), precision);
}

double now() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The next batch starts lower.
template <class T>
void descend(std::vector<T>& x, const std::vector<T>& dx, size_t count) {
  for (size_t i = 0; i < count; ++i) x[i] -= T(1e-3) * dx[i];
}

template <class T>
struct Interpreter {
  const Graph& g;
  std::vector<T> values = std::vector<T>(size_t(g.nodes)), grads = values;

  // All batches of one lane, whose i-th input is x[i * lanes]. Returns the last output and leaves values and gradients.
  T run(const auto* x, size_t lanes, int batches) {
    for (size_t i = 0; i < inputs; ++i) values[i] = T(x[i * lanes]);
    T y = 0;
    for (int batch = 0; batch < batches; ++batch) {
      if (batch > 0) descend(values, grads, inputs);
      y = c_run(g.operations.data(), int(g.operations.size()), g.nodes, T(g.weight), values.data(), grads.data());
    }
    return y;
  }
  static auto c_run(auto... args) {
    if constexpr (std::is_same_v<T, double>) return interpret_f64(args...);
    else return interpret_f32(args...);
  }
};

struct Work {
  Precision precision;
  int lanes = 10'000, batches = 1, threads = 1, repeats = 7;
};

struct Times {
  double dense, c;  // nanoseconds per operation and run
  double ratio;     // median of the repeats', in which the two take turns
  double error;     // largest difference from C in float64, relative to the output or to the largest gradient
};

template <class T>
Times measure(const Graph& g, const Program& program, const Work& w) {
  const size_t lanes = size_t(w.lanes);
  const double ops = double(g.operations.size());
  std::vector<T> start(inputs * lanes), x, values(lanes), grads(start.size());  // rows (inputs, lanes)
  for (size_t i = 0; i < inputs; ++i)
    for (size_t lane = 0; lane < lanes; ++lane)
      start[i * lanes + lane] = T(g.first + g.step * double(i) + 1e-5 * double(lane));

  const size_t c_lanes = std::clamp<size_t>(size_t(1e7 / ops / w.batches), 1, lanes);  // about 0.15 s
  Interpreter<T> c{g};
  std::vector<double> dense_times, c_times, ratios;
  for (int repeat = 0; repeat < w.repeats; ++repeat) {
    x = start;
    std::fill(grads.begin(), grads.end(), T(NAN));  // so that 0 must be written where gradients vanish
    const double dense_start = now();
    for (int batch = 0; batch < w.batches; ++batch) {
      if (batch > 0) descend(x, grads, x.size());
      program.run(
          Program::BatchOf<T>{.inputs = x, .values = values, .grads = grads, .lanes = w.lanes, .threads = w.threads});
    }
    const double c_start = now();
    for (size_t lane = 0; lane < c_lanes; ++lane) c.run(&start[lane], lanes, w.batches);
    dense_times.push_back((c_start - dense_start) / ops / double(lanes) / w.batches);
    c_times.push_back((now() - c_start) / ops / double(c_lanes) / w.batches);
    ratios.push_back(c_times.back() / dense_times.back());
  }
  Times t{median(dense_times), median(c_times), median(ratios), 0};

  Interpreter<double> reference{g};
  const auto check = [&](const char* what, size_t lane, double got, double want, double scale) {
    const double error = std::abs(got - want) / std::max(std::abs(scale), 1e-30);
    if (!(error <= (w.precision == Precision::f32 ? 1e-4 : 1e-9)))
      throw std::runtime_error(fmt::format("{} of lane {}: expected {} as in C, got {}", what, lane, want, got));
    t.error = std::max(t.error, error);
  };
  const size_t checked = std::min<size_t>(c_lanes, 64);
  for (size_t k = 1; k <= checked; ++k) {
    const size_t lane = k * lanes / checked - 1;
    const double y = reference.run(&start[lane], lanes, w.batches);
    check("the output", lane, values[lane], y, y);
    const auto [least, most] = std::minmax_element(reference.grads.begin(), reference.grads.end());
    for (size_t i = 0; i < inputs; ++i)
      check("a gradient", lane, grads[i * lanes + lane], reference.grads[i], std::max(-*least, *most));
  }
  return t;
}

Times measure(const Graph& g, const Work& w) {
  const Program program = record_and_compile(g, w.precision);
  return w.precision == Precision::f32 ? measure<float>(g, program, w) : measure<double>(g, program, w);
}

// What no program of this kind can beat: every node's value goes to and from the second level cache once, as fast as
// memcpy moves it there.
double ceiling(const Graph& g, size_t bytes) {
  std::vector<char> from(1 << 18, 1), to(from.size());
  double best = 1e9;
  for (int repeat = 0; repeat < 1000; ++repeat) {
    const double start = now();
    std::memcpy(to.data(), from.data(), to.size());
    best = std::min(best, now() - start);
    std::swap(from, to);
  }
  return best / double(from.size()) * double(bytes) * g.nodes / double(g.operations.size());
}

void print_header(const std::string& graph) {
  fmt::print("\n  {:<50}{:>9}{:>10}{:>9}{:>8}  {:<24}reached\n", graph, "Dense", "C", "ratio", "error", "to reach");
}

void print_row(const std::string& what, const std::string& dense, const std::string& peer,
               const std::string& target = "", bool reached = false) {
  fmt::print("  {:<50}{:>9}{:<29}{:<24}{}\n", what, dense, peer, target, target.empty() ? "" : reached ? "yes" : "NO");
  std::fflush(stdout);
}

// With a number of which there is to be at most `most`.
void print_row(const std::string& what, double number, const char* unit, const std::string& peer, double most) {
  print_row(what, fmt::format("{:.2f} {}", number, unit), peer, fmt::format("<= {} {}", most, unit), number <= most);
}

struct Target {
  double ns = 0, ratio = 0;  // at most, at least; 0: none
  const char* more = "";
};

void print_row(const std::string& what, const Times& t, const Target& target = {}) {
  std::string text = target.ns > 0 ? fmt::format("<= {} ns", target.ns) : "";
  if (target.ratio > 0) text += fmt::format(", >= {} x", target.ratio);
  print_row(what, fmt::format("{:.2f} ns", t.dense), fmt::format("{:7.2f} ns{:7.1f} x{:8.0e}", t.c, t.ratio, t.error),
            text + target.more, t.dense <= target.ns && t.ratio >= target.ratio);
}

// The graph's output, and the sum of the gradients of all nodes.
constexpr double published_output = 0.12589713828547422, published_gradients = 0.796068802;

void print_published() {
  const Graph g = published(10'000), mean = published(10'000, true);
  const Work f64{Precision::f64}, f32{Precision::f32}, f64_one{Precision::f64, 1, 1000};

  Interpreter<double> c{g};
  std::vector<double> x(inputs);
  std::iota(x.begin(), x.end(), 0);
  const double y = c.run(x.data(), 1, 1), dx = std::accumulate(c.grads.begin(), c.grads.end(), 0.0);
  if (std::abs(y - published_output) > 1e-14 || std::abs(dx - published_gradients) > 1e-9)
    throw std::runtime_error(fmt::format("C's output is {}, its gradients add up to {}", y, dx));
  fmt::print("C's output is {}, its gradients add up to {:.9f}, as published; Dense must agree with C.\n", y, dx);

  print_header("published graph, 10,000 operations");
  const Times wide = measure(g, f64), narrow = measure(g, f32);
  print_row("float64, 10,000 lanes", wide, {1.5, 8.5});
  print_row("float32, 10,000 lanes", narrow, {0.62, 22});
  print_row("float64, one lane, each run after the last", measure(g, f64_one), {8.5, 0, ", stretch 7"});
  print_row("exact, 10,000 lanes", measure(g, {.precision = Precision::exact, .repeats = 3}), {13});
  print_row("exact, one lane, each run after the last", measure(g, {Precision::exact, 1, 1000}), {13});
  print_row("output the mean of all nodes: float64, lanes", measure(mean, f64));
  print_row("  float32, lanes", measure(mean, f32));
  print_row("  float64, one lane", measure(mean, f64_one));
  for (const auto& [name, bytes, t] : {std::tuple{"float64", 8, wide}, {"float32", 4, narrow}}) {
    const double least = ceiling(g, size_t(bytes));
    print_row(fmt::format("ceiling, {}: values to and from L2 once", name), fmt::format("{:.2f} ns", least),
              fmt::format("{:8.0f} % reached", 100 * least / t.dense));
  }

  std::vector<double> times;
  for (int i = 0; i < 15; ++i) {
    const double start = now();
    const Program program = record_and_compile(g, Precision::f64);
    times.push_back(1e-6 * (now() - start));
  }
  print_row("record, differentiate, compile in C++, float64", median(times), "ms", "  (gcc -O1: a minute)", 4);
}

void print_python() {
  const char* command = "PYTHONPATH='" DENSE_PYTHON_DIR "' /usr/bin/python3 -B '" DENSE_SOURCE_DIR "/bench/scalar.py'";
  std::string said;
  if (FILE* pipe = popen(command, "r")) {
    for (int c; (c = std::fgetc(pipe)) != EOF && c != '\n';) said += char(c);
    if (pclose(pipe) != 0) said = "failed";
  }
  double compile = 0, all = 0, y = 0;
  if (std::sscanf(said.c_str(), "%lf %lf %lf", &compile, &all, &y) != 3) {
    print_row("the same from Python; that and 10,000 runs", "", "  " + said);
    return;
  }
  if (!(std::abs(y - published_output) < 1e-9))
    throw std::runtime_error(fmt::format("from Python the output is {}", y));
  print_row("the same from Python, building the graph included", compile, "ms", "  (JAX: 470 s)", 25);
  print_row("that and 10,000 runs, from Python", all, "ms", "  (C: 1340 ms)", 200);
}

struct RandomCase {
  int ops;
  Graph g = random_graph(ops);
  double start = now();
  Program program = record_and_compile(g, Precision::f64);
  double ms = 1e-6 * (now() - start);

  Times measure_lanes(int repeats) const {
    return measure<double>(g, program, {.precision = Precision::f64, .lanes = lanes(), .repeats = repeats});
  }
  Times measure_one(int repeats) const {
    return measure<double>(g, program, {Precision::f64, 1, 10'000'000 / ops, 1, repeats});
  }
  int lanes() const { return std::min(100'000'000 / ops, 10'000); }
};

void print_random() {
  print_header("random graphs, output the mean of all nodes");
  for (int ops : {1'000, 10'000, 100'000, 1'000'000}) {
    const RandomCase c{ops};
    print_row(fmt::format("{} operations, float64, {} lanes", with_commas(ops), with_commas(c.lanes())),
              c.measure_lanes(5));
    print_row(fmt::format("  one lane; compiled in {:.1f} ms", c.ms), c.measure_one(5));
  }
  const RandomCase small{1'000}, large{100'000};
  std::vector<double> lanes, one;
  for (int repeat = 0; repeat < 5; ++repeat) {  // in turns: what slows the machine slows both
    lanes.push_back(large.measure_lanes(1).dense / small.measure_lanes(1).dense);
    one.push_back(large.measure_one(1).dense / small.measure_one(1).dense);
  }
  print_row("100,000 operations to 1,000, lanes", median(lanes), "x", "", 1.5);
  print_row("100,000 operations to 1,000, one lane", median(one), "x", "", 1.5);
}

}  // namespace

int bench_scalar_command(const Call& call) {
  Config bench;
  if (!parse_flags(bench, call,
                   "Times recorded graphs beside a plain C interpreter and checks the results.\n"
                   "Without flags it prints every case, with flags the one they describe.",
                   call.program + " --precision f32 --lanes 16")) {
    return 0;
  }
  const auto name = std::ranges::find(precision_names, bench.precision);
  if (name == std::end(precision_names)) fail("--precision: expected exact, f64 or f32, got \"", bench.precision, '"');
  constexpr std::string_view isas[] = {"best", "avx512", "avx2", "portable"};
  if (std::ranges::find(isas, bench.isa) == std::end(isas))
    fail("--isa: expected avx512, avx2, portable or best, got \"", bench.isa, '"');
  if (bench.isa != "best") setenv("DENSE_ISA", bench.isa.c_str(), 1);

  if (call.args.empty()) {
    fmt::print(
        "Per operation and run, forward and backward, one thread: medians of repeats in which Dense and a plain C\n"
        "interpreter (gcc -O3 -ffast-math -march=native) take turns. Dense computes the gradients of the 100 inputs,\n"
        "C those of all nodes, cleared for each run. Every result of Dense is compared with C's in float64.\n");
    print_published();
    print_python();
    print_random();
    return 0;
  }
  const int lanes = std::min(bench.lanes, bench.iterations), batches = (bench.iterations - 1) / lanes + 1;
  const Times t = measure(published(bench.ops), {Precision(name - precision_names), lanes, batches, bench.threads, 5});
  fmt::print(
      "{} operations, {} runs of {} lanes, {}, isa {}, threads {}: {:.2f} ns; C {:.2f} ns, {:.1f} x; error {:.0e}\n",
      with_commas(bench.ops), with_commas(batches), with_commas(lanes), bench.precision, bench.isa, bench.threads,
      t.dense, t.c, t.ratio, t.error);
  return 0;
}

}  // namespace dense::cli
