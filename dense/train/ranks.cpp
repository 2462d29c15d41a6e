#include "dense/train/ranks.h"

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <utility>
#include <vector>

#include "dense/scalar/error.h"

#ifdef DENSE_MPI
#include <mpi.h>
#include <sched.h>
#endif

namespace dense {

namespace {

// How many processes the one who started this one says that there are.
int said_to_be_started() {
  int most = 1;
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"})
    if (const char* value = std::getenv(name)) most = std::max(most, std::atoi(value));
  return most;
}

// What else is needed of MPI. A process alone calls none of it.
#ifdef DENSE_MPI
void exchange(int other, std::span<const std::byte> out, std::span<std::byte> in) {
  MPI_Sendrecv(out.data(), int(out.size()), MPI_BYTE, other, 0, in.data(), int(in.size()), MPI_BYTE, other, 0,
               MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}
int largest(int value) {
  MPI_Allreduce(MPI_IN_PLACE, &value, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  return value;
}
std::string broadcast(std::string text, int from) {
  auto length = int(text.size());
  MPI_Bcast(&length, 1, MPI_INT, from, MPI_COMM_WORLD);
  text.resize(size_t(length));
  MPI_Bcast(text.data(), length, MPI_CHAR, from, MPI_COMM_WORLD);
  return text;
}
#else
void exchange(int, std::span<const std::byte>, std::span<std::byte>) {}
int largest(int value) { return value; }
std::string broadcast(std::string text, int) { return text; }
#endif

// At distance 1, 2, 4 ... two ranks split what both have: each adds up one half of it. Then halves go back.
template <class T>
void sum_of(std::span<T> values, int rank, int size) {
  constexpr size_t block = 1 << 20;  // few bytes are in memory twice
  std::vector<T> received(std::min(values.size(), block));
  for (size_t first = 0; first < values.size(); first += block) {
    std::span<T> mine = values.subspan(first, std::min(block, values.size() - first));
    std::vector<std::pair<std::span<T>, std::span<T>>> splits;  // what this rank kept, and what the other one did
    for (int distance = 1; distance < size; distance *= 2) {
      std::span<T> low = mine.first(mine.size() / 2), high = mine.subspan(mine.size() / 2);
      if (rank & distance) std::swap(low, high);
      splits.emplace_back(low, high);
      mine = low;
      const std::span<T> theirs = std::span(received).first(mine.size());
      exchange(rank ^ distance, std::as_bytes(high), std::as_writable_bytes(theirs));
      for (size_t i = 0; i < mine.size(); ++i) mine[i] += theirs[i];
    }
    for (int distance = size / 2; distance > 0; distance /= 2) {
      exchange(rank ^ distance, std::as_bytes(splits.back().first), std::as_writable_bytes(splits.back().second));
      splits.pop_back();
    }
  }
}

}  // namespace

Ranks Ranks::started() {
  Ranks ranks;
#ifdef DENSE_MPI
  int level = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level);
  ranks.mpi_ = std::shared_ptr<void>(nullptr, [](void*) { MPI_Finalize(); });
  MPI_Comm_rank(MPI_COMM_WORLD, &ranks.rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks.size_);
  MPI_Comm here{};
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here);
  MPI_Comm_size(here, &ranks.on_this_machine_);
  MPI_Comm_free(&here);
  const char* const help = "; of several kinds of srun --mpi=, choose that of this MPI";
#else
  const char* const help = "; this one is built without MPI: cmake --preset mpi && ninja -C build-mpi";
#endif
  if (const int said = said_to_be_started(); said != ranks.size_ && ranks.size_ == 1)
    fail(said, " processes are started, and each is alone", help);
  return ranks;
}

int Ranks::threads() const {
#ifdef DENSE_MPI
  cpu_set_t cores;  // that mpirun leaves to this rank
  CPU_ZERO(&cores);
  const int mine = sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
  if (size_ > 1) return std::clamp(int(std::thread::hardware_concurrency()) / on_this_machine_, 1, mine);
#endif
  return 0;
}

void Ranks::sum(std::span<float> values) const { sum_of(values, rank_, size_); }
void Ranks::sum(std::span<double> values) const { sum_of(values, rank_, size_); }

int Ranks::most(int value) const { return size_ == 1 ? value : largest(value); }

void Ranks::agree(const std::function<std::string()>& f) const {
  if (size_ == 1) return void(f());
  std::string told, error;
  try {
    told = f();
  } catch (const std::exception& e) {
    error = e.what();
  }
  const auto first_of = [&](bool mine) { return size_ - most(mine ? size_ - rank_ : 0); };  // size_: none of them
  if (const int bad = first_of(!error.empty()); bad < size_) fail(broadcast(error, bad));
  const std::string first = broadcast(told, 0);
  if (const int other = first_of(told != first); other < size_)
    fail("rank ", other, ": expected ", first, ", as rank 0 has, got ", broadcast(told, other));
}

void Ranks::abort(int exit_code) const {
#ifdef DENSE_MPI
  MPI_Abort(MPI_COMM_WORLD, exit_code);
#endif
  std::_Exit(exit_code);
}

}  // namespace dense
