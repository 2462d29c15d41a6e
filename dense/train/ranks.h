// The processes that train one model together, each on parts of every step of its own: those that mpirun or srun
// started, in a build with DENSE_MPI. A process alone is rank 0 of 1, and for it everything here is nothing.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

namespace dense {

class Ranks {
 public:
  Ranks() = default;  // alone
  // All that were started together. At most once in a process: the last copy ends MPI. Throws Error for processes that
  // do not find one another.
  static Ranks started();

  int rank() const { return rank_; }
  int size() const { return size_; }
  int threads() const;  // for each: its share of the machine; 0, which is all of it, alone

  // On every rank the sum of what the ranks have, added in a fixed binary tree: (0 + 1) + (2 + 3). The size must be a
  // power of two. Each rank sends and receives 2 (size - 1) / size times the values: it sums a share of them, and then
  // the shares go around.                     Rabenseifner 2004, "Optimization of Collective Reduction Operations"
  void sum(std::span<float> values) const;
  void sum(std::span<double> values) const;
  int most(int value) const;  // of what the ranks have
  // f() on every rank. Where one of them throws, or is told something else than rank 0, all throw the same Error.
  void agree(const std::function<std::string()>& f) const;
  [[noreturn]] void abort(int exit_code) const;  // ends all of them, wherever they are

 private:
  int rank_ = 0, size_ = 1, on_this_machine_ = 1;
  std::shared_ptr<void> mpi_ = {};
};

}  // namespace dense
