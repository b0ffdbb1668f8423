// The CPU linear operator: time, bytes a second, and their share of what this machine can read.
//
//   bench_linear [--threads 1,2] [--shapes 4096x4096,14336x4096] [--precisions 2,..,8] [--rows 1]
//                [--isa avx2] [--seconds 0.5] [--json FILE]
//
// Shapes are N x K. Weights are read from memory, not from a cache: calls rotate through copies of
// the planes and tables that together exceed the last-level cache several times.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "anyprec/linear.h"

namespace {

using anyprec::ScalarType;
using anyprec::cpu::Isa;
using Clock = std::chrono::steady_clock;

struct Shape {
  std::int64_t n, k;
};

struct Options {
  std::vector<int> threads{1, 2};
  std::vector<Shape> shapes{{4096, 4096}, {14336, 4096}};
  std::vector<int> precisions{2, 3, 4, 5, 6, 7, 8};
  std::vector<int> rows{1};
  Isa isa = anyprec::cpu::selected_isa();
  double seconds = 0.5;
  std::string json;
};

struct Timing {
  double median_us, fastest_us;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Calls `body(i)` for i = 0, 1, .. for about `seconds`, at least five times.
template <class Body>
Timing time_calls(double seconds, const Body& body) {
  std::vector<double> times;
  const Clock::time_point start = Clock::now();
  body(0);  // pages, threads, caches of code
  for (int i = 1; i < 6 || seconds_since(start) < seconds; ++i) {
    const Clock::time_point begin = Clock::now();
    body(i);
    times.push_back(1e6 * seconds_since(begin));
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front()};
}

/// Bytes that calls should rotate through.
std::int64_t beyond_cache() {
  const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::max<std::int64_t>(256 << 20, 4 * static_cast<std::int64_t>(cache));
}

/// The rate at which the threads of `pool` read memory, in GB/s: the best of many sweeps.
double read_bandwidth(const std::vector<std::uint8_t>& memory, const anyprec::Executor& pool,
                      double seconds) {
  const std::int64_t words = static_cast<std::int64_t>(memory.size() / 64);
  volatile std::uint64_t sink = 0;
  const Timing timing = time_calls(seconds, [&](int) {
    pool.parallel_for(
        words, words / pool.concurrency() + 1, [&](std::int64_t begin, std::int64_t end) {
          // One word a cache line: the line's transfer is what is timed.
          const std::uint64_t* data = reinterpret_cast<const std::uint64_t*>(memory.data());
          std::uint64_t sums[4] = {};
          std::int64_t i = begin;
          for (; i + 4 <= end; i += 4)
            for (int j = 0; j < 4; ++j) sums[j] += data[(i + j) * 8];
          sink = sink + sums[0] + sums[1] + sums[2] + sums[3];
        });
  });
  return 64e-3 * static_cast<double>(words) / timing.fastest_us;
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), planes_(beyond_cache()) {
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i + 8 <= planes_.size(); i += 8) {
      const std::uint64_t bits = random();
      std::copy_n(reinterpret_cast<const std::uint8_t*>(&bits), 8, planes_.data() + i);
    }
  }

  nlohmann::json run() {
    nlohmann::json results = nlohmann::json::array();
    for (const int threads : options_.threads) {
      const anyprec::ThreadPool pool(threads);
      const double bandwidth = read_bandwidth(planes_, pool, options_.seconds);
      std::printf("\n%s, %d thread%s, memory reads at %.1f GB/s\n",
                  anyprec::cpu::to_string(options_.isa).c_str(), threads, threads == 1 ? "" : "s",
                  bandwidth);
      std::printf("%14s %4s %5s %12s %12s %8s %10s\n", "N x K", "M", "bits", "median us", "best us",
                  "GB/s", "of memory");
      for (const Shape& shape : options_.shapes)
        for (const int m : options_.rows)
          for (const int precision : options_.precisions)
            results.push_back(row(pool, threads, bandwidth, shape, m, precision));
    }
    return results;
  }

 private:
  nlohmann::json row(const anyprec::Executor& pool, int threads, double bandwidth,
                     const Shape& shape, int m, int precision) {
    const std::int64_t plane_bytes = precision * anyprec::packed_plane_bytes(shape.n, shape.k);
    const std::int64_t table_entries = shape.n << precision;
    const std::int64_t copies =
        std::max<std::int64_t>(1, static_cast<std::int64_t>(planes_.size()) / plane_bytes);
    if (plane_bytes > static_cast<std::int64_t>(planes_.size())) {
      throw std::invalid_argument("shape is larger than the memory of the benchmark");
    }
    // fp16 values of a size from 2^-6 to 2^-4.
    std::vector<std::uint16_t> tables(copies * table_entries);
    std::mt19937 random(2);
    for (auto& value : tables) value = static_cast<std::uint16_t>(0x2400 + random() % 0x800);
    const std::vector<float> x(m * shape.k, 0.5f);
    std::vector<float> y(m * shape.n);

    anyprec::Weights weights;
    weights.out_features = shape.n;
    weights.in_features = shape.k;
    weights.precision = precision;
    const Timing timing = time_calls(options_.seconds, [&](int i) {
      weights.planes = planes_.data() + i % copies * plane_bytes;
      weights.lut = tables.data() + i % copies * table_entries;
      anyprec::cpu::linear(weights, x.data(), shape.k, m, nullptr, y.data(), shape.n,
                           ScalarType::kFloat32, pool, options_.isa);
    });
    const double bytes = static_cast<double>(plane_bytes + 2 * table_entries);
    const double rate = 1e-3 * bytes / timing.median_us;
    std::printf("%6lld x %5lld %4d %5d %12.1f %12.1f %8.1f %9.0f%%\n",
                static_cast<long long>(shape.n), static_cast<long long>(shape.k), m, precision,
                timing.median_us, timing.fastest_us, rate, 100 * rate / bandwidth);
    std::fflush(stdout);
    return {{"n", shape.n},
            {"k", shape.k},
            {"m", m},
            {"precision", precision},
            {"threads", threads},
            {"isa", anyprec::cpu::to_string(options_.isa)},
            {"median_us", timing.median_us},
            {"best_us", timing.fastest_us},
            {"bytes", bytes},
            {"gb_per_s", rate},
            {"memory_gb_per_s", bandwidth}};
  }

  Options options_;
  std::vector<std::uint8_t> planes_;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}

std::vector<int> numbers(const std::string& text) {
  std::vector<int> result;
  for (const std::string& part : split(text)) result.push_back(std::stoi(part));
  return result;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) throw std::invalid_argument(name + ": wants a value");
    const std::string value = argv[i + 1];
    if (name == "--threads") {
      options.threads = numbers(value);
    } else if (name == "--precisions") {
      options.precisions = numbers(value);
    } else if (name == "--rows") {
      options.rows = numbers(value);
    } else if (name == "--seconds") {
      options.seconds = std::stod(value);
    } else if (name == "--json") {
      options.json = value;
    } else if (name == "--isa") {
      bool found = false;
      for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vbmi}) {
        if (anyprec::cpu::to_string(isa) != value) continue;
        options.isa = isa;
        found = true;
      }
      if (!found) throw std::invalid_argument("--isa: no such instruction set: " + value);
    } else if (name == "--shapes") {
      options.shapes.clear();
      for (const std::string& part : split(value)) {
        const std::size_t cross = part.find('x');
        if (cross == std::string::npos) throw std::invalid_argument("--shapes: want NxK: " + part);
        options.shapes.push_back({std::stoll(part), std::stoll(part.substr(cross + 1))});
      }
    } else {
      throw std::invalid_argument("unknown option " + name);
    }
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options options = parse(argc, argv);
    const nlohmann::json results = Bench(options).run();
    if (!options.json.empty()) std::ofstream(options.json) << results.dump(1) << "\n";
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "bench_linear: " << error.what() << "\n";
    return 2;
  }
}
