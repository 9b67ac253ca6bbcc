// SPDX-License-Identifier: Apache-2.0
//
// Block-sparse attention on x86 CPUs with AVX-512 or AVX2, flash style: one pass over the key
// blocks of a row with a running maximum, no matrix of scores. Free of torch, so that it builds in
// seconds and fits every version of it; `native.py` compiles it and calls it through a C interface.
//
// Everything is computed transposed, S^T = K Q^T and O^T = V^T P^T, with queries in vector lanes:
// softmax needs no horizontal operation, and a key that does not exist is simply left out.
//
// Axes: B batch, H heads, N tokens, D head size, L lanes of a vector.
#include "native_arithmetic.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

extern "C" {

enum DataType : int64_t { kFloat32 = 0, kBfloat16 = 1 };
enum Status : int { kDone = 0, kOutOfMemory = 1, kNoThread = 2 };

// Mirrored field by field by `_Call` in native.py; all sizes and strides count elements.
struct Call {
  const void* q;                   // [B, H, Nq, D], strided, last axis dense
  const void* k;                   // [B, H, Nk, D], likewise
  const void* v;                   // [B, H, Nk, D], likewise
  void* out;                       // [B, H, Nq, D], contiguous
  float* lse;                      // [B, H, Nq], contiguous
  const uint8_t* key_mask;         // [B, Nk], contiguous, or null
  const int64_t* row_offsets;      // [B * H * listed query blocks + 1]
  const int32_t* columns;          // [row_offsets[-1]]
  const float* coarse_keys;        // [B, H, C, D], contiguous, or null; C = listed key blocks
  const float* coarse_values;      // [B, H, C, D], contiguous
  const float* coarse_log_counts;  // [B, C], contiguous
  int64_t dtype;
  int64_t batch, heads, num_q, num_k, head_size;
  int64_t q_strides[3], k_strides[3], v_strides[3];
  int64_t block_q, block_k, num_q_blocks, num_k_blocks;
  int64_t num_full_q_blocks, num_sink_k_blocks;
  int64_t scratch_bytes;  // for packed keys and values; one head's are packed in any case
  int64_t num_threads;
  double scale;
};

int ns_block_sparse_attention(const Call* call);

}  // extern "C"

namespace {

constexpr int kColumns = 2 * kLanes;  // Queries of a panel: two vectors.
constexpr int kTile = 64;             // Keys at a time.
constexpr int kChunk = 128;           // Queries of a task at most.
static_assert(kTile % kRows == 0 && kChunk % kColumns == 0, "Whole micro-tiles.");

// ---- Memory and threads.

int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// Uninitialised memory on a cache line's boundary.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    const auto bytes = static_cast<size_t>(round_up(std::max<int64_t>(size, 1) * sizeof(T), 64));
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
    if (!memory_) throw std::bad_alloc();
  }
  T* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

// Calls work(worker, item) for every item, the next one to whoever is free; rethrows an exception.
template <typename Work>
void parallel_for(int64_t num_items, int64_t num_threads, const Work& work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_lock;
  const auto run = [&](int64_t worker) {
    // Denormal weights cost hundreds of cycles and contribute nothing.
    const unsigned control = _mm_getcsr();
    _mm_setcsr(control | 0x8040u);
    try {
      for (int64_t item; (item = next.fetch_add(1)) < num_items;) work(worker, item);
    } catch (...) {
      next = num_items;
      const std::lock_guard<std::mutex> guard(error_lock);
      error = std::current_exception();
    }
    _mm_setcsr(control);
  };
  std::vector<std::thread> threads;
  try {
    for (int64_t worker = 1; worker < std::min(num_threads, num_items); ++worker) {
      threads.emplace_back(run, worker);
    }
  } catch (...) {
    // Those that did start finish first: they hold references to what is on this stack.
    next = num_items;
    for (auto& thread : threads) thread.join();
    throw;
  }
  run(0);
  for (auto& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

// ---- Keys and values, packed in the order in which the products read them.

// Up to kTile keys: scores read [rows / kRows][steps of D][kRows], values [D / kRows][rows][kRows].
template <typename Product>
struct Tiles {
  using Step = typename Product::Step;

  Tiles(int64_t num_tiles, int64_t rows, int64_t head_size)
      : rows(rows),
        steps((head_size + Product::kElements - 1) / Product::kElements),
        value_size(round_up(head_size, kRows)),
        head_size(head_size),
        keys(num_tiles * key_stride()),
        values(num_tiles * value_stride()),
        counts(num_tiles) {}

  int64_t key_stride() const { return rows * steps; }
  int64_t value_stride() const { return rows * value_size; }
  const Step* keys_of(int64_t tile) const { return keys.get() + tile * key_stride(); }
  const float* values_of(int64_t tile) const { return values.get() + tile * value_stride(); }
  int64_t count(int64_t tile) const { return counts.get()[tile]; }

  template <typename Element>
  void put(int64_t tile, int64_t row, const Element* key, const Element* value) const {
    Step* to = keys.get() + tile * key_stride() + row / kRows * kRows * steps + row % kRows;
    Product::spread(key, head_size, to, kRows);
    float* out = values.get() + tile * value_stride() + row * kRows;
    for (int64_t first = 0; first < value_size; first += kRows, out += rows * kRows) {
      const int64_t size = std::min<int64_t>(kRows, head_size - first);
      for (int64_t d = 0; d < size; ++d) out[d] = to_float(value[first + d]);
      for (int64_t d = size; d < kRows; ++d) out[d] = 0.0f;
    }
  }

  // The number of keys; scores are computed for whole micro-tiles, so the rest of the last is zero.
  void finish(int64_t tile, int64_t count) const {
    counts.get()[tile] = count;
    for (int64_t row = count; row < round_up(count, kRows); ++row) {
      Step* to = keys.get() + tile * key_stride() + row / kRows * kRows * steps + row % kRows;
      for (int64_t i = 0; i < steps; ++i) to[i * kRows] = Step{};
    }
  }

  const int64_t rows;        // Room for keys, a multiple of kRows.
  const int64_t steps;       // Steps of a dot product.
  const int64_t value_size;  // D rounded up to whole micro-tiles.
  const int64_t head_size;

 private:
  Buffer<Step> keys;
  Buffer<float> values;
  Buffer<int64_t> counts;
};

// ---- One row of blocks.

// The state of up to kChunk queries while they visit tiles. Panels of kColumns queries, each
// contiguous: queries [steps][kColumns], sums [D][kColumns].
template <typename Product>
class Panels {
 public:
  using Step = typename Product::Step;

  Panels(int64_t head_size)
      : head_size_(head_size),
        steps_((head_size + Product::kElements - 1) / Product::kElements),
        queries_(kChunk * steps_) {}

  template <typename Element>
  void pack(const Element* q, int64_t stride, int64_t count) {
    for (int64_t i = 0; i < round_up(count, kColumns); ++i) {
      Step* to = queries_.get() + i / kColumns * kColumns * steps_ + i % kColumns;
      if (i < count) {
        Product::spread(q + i * stride, head_size_, to, kColumns);
      } else {
        for (int64_t s = 0; s < steps_; ++s) to[s * kColumns] = Step{};
      }
    }
  }

  const Step* queries_of(int64_t panel) const { return queries_.get() + panel * kColumns * steps_; }

 private:
  const int64_t head_size_, steps_;
  Buffer<Step> queries_;
};

// scores[kRows][kColumns] = keys[steps][kRows] . queries[steps][kColumns]
template <typename Product>
inline void multiply_scores(const typename Product::Step* keys,
                            const typename Product::Step* queries, int64_t steps, float* scores) {
  Vector sums[kRows][2];
  for (int r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = fill(0.0f);
  for (int64_t i = 0; i < steps; ++i) {
    const Vector left = Product::lanes(queries + i * kColumns);
    const Vector right = Product::lanes(queries + i * kColumns + kLanes);
    for (int r = 0; r < kRows; ++r) {
      sums[r][0] = Product::accumulate(sums[r][0], keys + i * kRows + r, left);
      sums[r][1] = Product::accumulate(sums[r][1], keys + i * kRows + r, right);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    store(scores + r * kColumns, sums[r][0]);
    store(scores + r * kColumns + kLanes, sums[r][1]);
  }
}

// sums[kRows][kColumns] = sums * shrink[kColumns] + values[count][kRows] . weights[count][kColumns]
inline void multiply_values(const float* values, const float* weights, int64_t count,
                            const Vector (&shrink)[2], float* sums) {
  // Each tile sums from zero, so that rounding errors grow with tiles rather than with keys.
  Vector acc[kRows][2];
  for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = fill(0.0f);
  for (int64_t j = 0; j < count; ++j) {
    const Vector left = load(weights + j * kColumns);
    const Vector right = load(weights + j * kColumns + kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Vector value = fill(values[j * kRows + r]);
      acc[r][0] = multiply_add(value, left, acc[r][0]);
      acc[r][1] = multiply_add(value, right, acc[r][1]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* row = sums + r * kColumns;
    store(row, multiply_add(load(row), shrink[0], acc[r][0]));
    store(row + kLanes, multiply_add(load(row + kLanes), shrink[1], acc[r][1]));
  }
}

// Turns scores [count][kColumns] into weights in place; returns by what earlier sums shrink.
inline void weigh(float* scores, int64_t count, float scale_log2, float* peaks, float* totals,
                  Vector (&shrink)[2]) {
  const Vector scale = fill(scale_log2);
  for (int side = 0; side < 2; ++side) {
    float* column = scores + side * kLanes;
    Vector peak = load(column);
    for (int64_t j = 1; j < count; ++j) peak = maximum(peak, load(column + j * kColumns));
    const Vector before = load(peaks + side * kLanes);
    peak = maximum(before, multiply(peak, scale));
    store(peaks + side * kLanes, peak);
    shrink[side] = exp2(subtract(before, peak));
    Vector total = fill(0.0f);
    for (int64_t j = 0; j < count; ++j) {
      const Vector weight = exp2(multiply_subtract(load(column + j * kColumns), scale, peak));
      total = add(total, weight);
      store(column + j * kColumns, weight);
    }
    float* sum = totals + side * kLanes;
    store(sum, multiply_add(load(sum), shrink[side], total));
  }
}

template <typename Element, typename Product>
class Worker {
 public:
  explicit Worker(const Call& call)
      : call_(call),
        value_size_(round_up(call.head_size, kRows)),
        queries_(call.head_size),
        coarse_queries_(call.coarse_keys ? call.head_size : 0),
        coarse_tile_(call.coarse_keys ? 1 : 0, kTile, call.head_size),
        coarse_bias_(kTile),
        is_listed_(call.coarse_keys ? call.num_k_blocks : 0),
        scores_(kTile * kColumns),
        sums_(kChunk * value_size_),
        peaks_(kChunk),
        totals_(kChunk) {
    std::fill_n(is_listed_.get(), call.coarse_keys ? call.num_k_blocks : 0, uint8_t{0});
  }

  // Computes a chunk of a query block; `tiles` are those of its head.
  void attend(int64_t b, int64_t h, int64_t q_block, int64_t chunk, const Tiles<Product>& tiles,
              int64_t first_tile, int64_t tiles_per_block) {
    const int64_t start = q_block * call_.block_q + chunk * kChunk;
    const int64_t end = std::min({start + kChunk, (q_block + 1) * call_.block_q, call_.num_q});
    if (start >= end) return;
    count_ = end - start;
    const auto* q = static_cast<const Element*>(call_.q) + b * call_.q_strides[0] +
                    h * call_.q_strides[1] + start * call_.q_strides[2];
    queries_.pack(q, call_.q_strides[2], count_);
    std::fill_n(sums_.get(), kChunk * value_size_, 0.0f);
    std::fill_n(peaks_.get(), kChunk, -std::numeric_limits<float>::infinity());
    std::fill_n(totals_.get(), kChunk, 0.0f);

    const auto visit = [&](int64_t block) {
      for (int64_t t = 0; t < tiles_per_block; ++t) {
        const int64_t tile = first_tile + block * tiles_per_block + t;
        visit_tile(tiles, tile, queries_, nullptr);
      }
    };
    const int64_t num_listed_q = call_.num_q_blocks - call_.num_full_q_blocks;
    const int64_t num_listed_k = call_.num_k_blocks - call_.num_sink_k_blocks;
    if (q_block < num_listed_q) {
      const int64_t row = (b * call_.heads + h) * num_listed_q + q_block;
      const int32_t* columns = call_.columns + call_.row_offsets[row];
      const int64_t length = call_.row_offsets[row + 1] - call_.row_offsets[row];
      for (int64_t i = 0; i < length; ++i) visit(columns[i]);
      for (int64_t block = num_listed_k; block < call_.num_k_blocks; ++block) visit(block);
      if (call_.coarse_keys) {
        coarse_queries_.pack(q, call_.q_strides[2], count_);
        visit_left_out(b, h, columns, length, num_listed_k);
      }
    } else {
      for (int64_t block = 0; block < call_.num_k_blocks; ++block) visit(block);
    }
    const int64_t first = (b * call_.heads + h) * call_.num_q + start;
    write(static_cast<Element*>(call_.out) + first * call_.head_size, call_.lse + first);
  }

 private:
  template <typename P>
  void visit_tile(const Tiles<P>& tiles, int64_t tile, const Panels<P>& queries,
                  const float* bias) {
    const int64_t num_keys = tiles.count(tile);
    if (num_keys == 0) return;
    const auto* keys = tiles.keys_of(tile);
    const float* values = tiles.values_of(tile);
    float* scores = scores_.get();
    for (int64_t panel = 0; panel * kColumns < count_; ++panel) {
      for (int64_t row = 0; row < num_keys; row += kRows) {
        multiply_scores<P>(keys + row * tiles.steps, queries.queries_of(panel), tiles.steps,
                           scores + row * kColumns);
      }
      if (bias) add_bias(bias, num_keys);
      Vector shrink[2];
      weigh(scores, num_keys, static_cast<float>(call_.scale) * kLog2E,
            peaks_.get() + panel * kColumns, totals_.get() + panel * kColumns, shrink);
      float* sums = sums_.get() + panel * kColumns * value_size_;
      for (int64_t d = 0; d < value_size_; d += kRows) {
        multiply_values(values + d * tiles.rows, scores, num_keys, shrink, sums + d * kColumns);
      }
    }
  }

  void add_bias(const float* bias, int64_t num_keys) {
    for (int64_t j = 0; j < num_keys; ++j) {
      float* row = scores_.get() + j * kColumns;
      store(row, add(load(row), fill(bias[j])));
      store(row + kLanes, add(load(row + kLanes), fill(bias[j])));
    }
  }

  // The coarse term: the means of the blocks that are not in the list, in float32 throughout.
  void visit_left_out(int64_t b, int64_t h, const int32_t* columns, int64_t length,
                      int64_t num_listed) {
    for (int64_t i = 0; i < length; ++i) is_listed_.get()[columns[i]] = 1;
    const int64_t head = (b * call_.heads + h) * num_listed;
    const float* log_counts = call_.coarse_log_counts + b * num_listed;
    int64_t num_keys = 0;
    const auto flush = [&] {
      coarse_tile_.finish(0, num_keys);
      visit_tile(coarse_tile_, 0, coarse_queries_, coarse_bias_.get());
      num_keys = 0;
    };
    for (int64_t block = 0; block < num_listed; ++block) {
      if (is_listed_.get()[block] || std::isinf(log_counts[block])) continue;
      const int64_t offset = (head + block) * call_.head_size;
      coarse_tile_.put(0, num_keys, call_.coarse_keys + offset, call_.coarse_values + offset);
      // Scores are scaled later.
      coarse_bias_.get()[num_keys] = log_counts[block] / static_cast<float>(call_.scale);
      if (++num_keys == kTile) flush();
    }
    flush();
    for (int64_t i = 0; i < length; ++i) is_listed_.get()[columns[i]] = 0;
  }

  void write(Element* out, float* lse) const {
    for (int64_t i = 0; i < count_; ++i) {
      const float total = totals_.get()[i];
      // A query without any key gives zeros; its total is zero, never NaN.
      const float factor = total == 0.0f ? 0.0f : 1.0f / total;
      const float* sums = sums_.get() + i / kColumns * kColumns * value_size_ + i % kColumns;
      for (int64_t d = 0; d < call_.head_size; ++d) {
        convert(sums[d * kColumns] * factor, out + i * call_.head_size + d);
      }
      lse[i] = peaks_.get()[i] * kLn2 + std::log(total);
    }
  }

  const Call& call_;
  const int64_t value_size_;
  int64_t count_ = 0;
  Panels<Product> queries_;
  Panels<FloatProduct> coarse_queries_;
  Tiles<FloatProduct> coarse_tile_;
  Buffer<float> coarse_bias_;  // [kTile]
  Buffer<uint8_t> is_listed_;  // [listed key blocks]
  Buffer<float> scores_;       // [kTile][kColumns]
  Buffer<float> sums_;         // [panels][D][kColumns]
  Buffer<float> peaks_;        // [kChunk], in powers of two
  Buffer<float> totals_;       // [kChunk]
};

// Packs the keys of a block that exist into its tiles.
template <typename Element, typename Product>
void pack_block(const Call& call, int64_t b, int64_t h, int64_t block, const Tiles<Product>& tiles,
                int64_t tile, int64_t tiles_per_block) {
  const auto* k = static_cast<const Element*>(call.k) + b * call.k_strides[0] +
                  h * call.k_strides[1];
  const auto* v = static_cast<const Element*>(call.v) + b * call.v_strides[0] +
                  h * call.v_strides[1];
  const int64_t last_tile = tile + tiles_per_block;
  const int64_t end = std::min((block + 1) * call.block_k, call.num_k);
  int64_t num_keys = 0;
  for (int64_t i = block * call.block_k; i < end; ++i) {
    if (call.key_mask && !call.key_mask[b * call.num_k + i]) continue;
    tiles.put(tile, num_keys, k + i * call.k_strides[2], v + i * call.v_strides[2]);
    if (++num_keys == tiles.rows) {
      tiles.finish(tile++, num_keys);
      num_keys = 0;
    }
  }
  for (; tile < last_tile; ++tile, num_keys = 0) tiles.finish(tile, num_keys);
}

template <typename Element, typename Product>
void run(const Call& call) {
  // Small blocks have small tiles, large ones several.
  const int64_t rows = std::min<int64_t>(kTile, round_up(call.block_k, kRows));
  const int64_t tiles_per_block = (call.block_k + rows - 1) / rows;
  const int64_t tiles_per_head = call.num_k_blocks * tiles_per_block;
  const int64_t chunks_per_block = (call.block_q + kChunk - 1) / kChunk;
  const int64_t chunks_per_head = call.num_q_blocks * chunks_per_block;
  const int64_t num_heads = call.batch * call.heads;
  const int64_t bytes_per_head =
      tiles_per_head * rows * call.head_size * static_cast<int64_t>(2 * sizeof(float));
  const int64_t heads_at_once =
      std::clamp<int64_t>(call.scratch_bytes / bytes_per_head, 1, num_heads);

  std::vector<std::unique_ptr<Worker<Element, Product>>> workers;
  for (int64_t i = 0; i < std::min(call.num_threads, heads_at_once * chunks_per_head); ++i) {
    workers.push_back(std::make_unique<Worker<Element, Product>>(call));
  }
  const Tiles<Product> tiles(heads_at_once * tiles_per_head, rows, call.head_size);
  for (int64_t first = 0; first < num_heads; first += heads_at_once) {
    const int64_t group = std::min(heads_at_once, num_heads - first);
    parallel_for(group * call.num_k_blocks, call.num_threads, [&](int64_t, int64_t item) {
      const int64_t head = first + item / call.num_k_blocks;
      pack_block<Element>(call, head / call.heads, head % call.heads, item % call.num_k_blocks,
                          tiles, item * tiles_per_block, tiles_per_block);
    });
    parallel_for(group * chunks_per_head, call.num_threads, [&](int64_t worker, int64_t item) {
      const int64_t slot = item / chunks_per_head;
      // The last query blocks are the longest where they attend to everything: they come first.
      const int64_t chunk = chunks_per_head - 1 - item % chunks_per_head;
      const int64_t head = first + slot;
      workers[worker]->attend(head / call.heads, head % call.heads, chunk / chunks_per_block,
                              chunk % chunks_per_block, tiles, slot * tiles_per_head,
                              tiles_per_block);
    });
  }
}

}  // namespace

int ns_block_sparse_attention(const Call* call) {
  try {
    if (call->dtype == kFloat32) {
      run<float, FloatProduct>(*call);
    } else {
#if defined(__AVX512BF16__)
      run<Bfloat16, Bf16Product>(*call);
#else
      run<Bfloat16, FloatProduct>(*call);
#endif
    }
  } catch (const std::bad_alloc&) {
    return kOutOfMemory;
  } catch (...) {
    return kNoThread;
  }
  return kDone;
}
