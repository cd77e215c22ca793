#include "cli/kv_books.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "base/rng.h"
#include "base/team.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/kv_cache.h"
#include "llm/kv/pass_cache.h"

namespace frugal::cli {
namespace {

using llm::kKvBlock;
using llm::KvCache;
using llm::KvQueries;
using llm::KvShape;

constexpr size_t kEntries = 256;  // of a quantiser's book: an index is a byte
constexpr size_t kAtoms = 1024;   // of the pursuit
constexpr int kRounds = 4;        // of k-means, and of the pursuit's dictionary
constexpr size_t kRowsTrained = 4096;
constexpr int kTokensRead = 6144;

struct Scheme {
  const char* name;
  enum Kind { kResidual, kProduct, kPursuit } kind;
  double bits;
  size_t n;  // books of a residual quantiser, channels of a product quantiser's part, atoms of the pursuit
};
constexpr Scheme kSchemes[] = {
    {"residual VQ 1-bit", Scheme::kResidual, 1, 8},  {"residual VQ 2-bit", Scheme::kResidual, 2, 16},
    {"residual VQ 3-bit", Scheme::kResidual, 3, 24}, {"product VQ 1-bit", Scheme::kProduct, 1, 8},
    {"product VQ 2-bit", Scheme::kProduct, 2, 4},    {"CSR paper 1-bit", Scheme::kPursuit, 1, 2},
    {"CSR paper 2-bit", Scheme::kPursuit, 2, 4}};

// Entries side by side: [dim, n], with half of each one's square.
struct Book {
  size_t dim = 0, n = 0;
  std::vector<float> entries, half_squares;

  float& at(size_t d, size_t entry) { return entries[d * n + entry]; }
  float at(size_t d, size_t entry) const { return entries[d * n + entry]; }
  void square() {
    half_squares.assign(n, 0.0f);
    for (size_t d = 0; d < dim; ++d) {
      for (size_t e = 0; e < n; ++e) half_squares[e] += 0.5f * at(d, e) * at(d, e);
    }
  }
  // products[row, entry] of rows `stride` floats apart.
  void products(const float* rows, size_t n_rows, size_t stride, float* out) const {
    llm::kernels().panel_f32({entries.data(), n, 16, n / 16, dim}, rows, stride, n_rows, out, n, false);
  }
  // The nearest entry of each row.
  void nearest(const float* rows, size_t n_rows, size_t stride, uint32_t* found) const {
    std::vector<float> dots(std::min<size_t>(n_rows, 64) * n);
    for (size_t first = 0; first < n_rows; first += 64) {
      const size_t some = std::min<size_t>(64, n_rows - first);
      products(rows + first * stride, some, stride, dots.data());
      for (size_t r = 0; r < some; ++r) {
        const float* row = &dots[r * n];
        size_t best = 0;
        for (size_t e = 1; e < n; ++e) {
          if (row[e] - half_squares[e] > row[best] - half_squares[best]) best = e;
        }
        found[first + r] = static_cast<uint32_t>(best);
      }
    }
  }
};

// k-means on rows [n_rows, dim]; an entry that nothing is nearest to takes a row at random.
Book k_means(const std::vector<float>& rows, size_t dim, size_t n_entries, uint64_t seed) {
  const size_t n_rows = rows.size() / dim;
  Rng rng(seed);
  Book book;
  book.dim = dim;
  book.n = n_entries;
  book.entries.resize(dim * n_entries);
  const auto take = [&](size_t entry) {
    const size_t row = rng.below(static_cast<uint32_t>(n_rows));
    for (size_t d = 0; d < dim; ++d) book.at(d, entry) = rows[row * dim + d];
  };
  for (size_t e = 0; e < n_entries; ++e) take(e);
  std::vector<uint32_t> found(n_rows);
  for (int round = 0; round < kRounds; ++round) {
    book.square();
    book.nearest(rows.data(), n_rows, dim, found.data());
    std::fill(book.entries.begin(), book.entries.end(), 0.0f);
    std::vector<size_t> count(n_entries, 0);
    for (size_t r = 0; r < n_rows; ++r) {
      ++count[found[r]];
      for (size_t d = 0; d < dim; ++d) book.at(d, found[r]) += rows[r * dim + d];
    }
    for (size_t e = 0; e < n_entries; ++e) {
      if (count[e] == 0) take(e);
      for (size_t d = 0; d < dim && count[e] > 0; ++d) book.at(d, e) /= static_cast<float>(count[e]);
    }
  }
  book.square();
  return book;
}

// Rows less their nearest entries; what is taken off is added to `sum` when there is one.
void subtract_nearest(const Book& book, float* rows, size_t n_rows, size_t stride, float* sum) {
  std::vector<uint32_t> found(n_rows);
  book.nearest(rows, n_rows, stride, found.data());
  for (size_t r = 0; r < n_rows; ++r) {
    for (size_t d = 0; d < book.dim; ++d) {
      rows[r * stride + d] -= book.at(d, found[r]);
      if (sum != nullptr) sum[r * stride + d] += book.at(d, found[r]);
    }
  }
}

void unit_norm(Book& book) {
  for (size_t e = 0; e < book.n; ++e) {
    float square = 1e-20f;
    for (size_t d = 0; d < book.dim; ++d) square += book.at(d, e) * book.at(d, e);
    for (size_t d = 0; d < book.dim; ++d) book.at(d, e) /= std::sqrt(square);
  }
}

// Matching pursuit: `s` times the atom with the largest product, and its product as a half, off the rows.
// `use(row, atom, coefficient)` tells what was taken.
template <typename F>
void pursue(const Book& atoms, size_t s, float* rows, size_t n_rows, size_t stride, F use) {
  std::vector<float> dots(64 * atoms.n);
  for (size_t first = 0; first < n_rows; first += 64) {
    const size_t some = std::min<size_t>(64, n_rows - first);
    for (size_t step = 0; step < s; ++step) {
      atoms.products(rows + first * stride, some, stride, dots.data());
      for (size_t r = 0; r < some; ++r) {
        const float* row = &dots[r * atoms.n];
        size_t best = 0;
        for (size_t e = 1; e < atoms.n; ++e) {
          if (std::fabs(row[e]) > std::fabs(row[best])) best = e;
        }
        const float coefficient = llm::f16_to_f32(llm::f32_to_f16(row[best]));
        float* x = rows + (first + r) * stride;
        for (size_t d = 0; d < atoms.dim; ++d) x[d] -= coefficient * atoms.at(d, best);
        use(first + r, best, coefficient);
      }
    }
  }
}

// Atoms for codes of s: from centroids, then atoms moved to what the rows that use them leave over (the step
// of a gradient, each atom by its own energy), to unit norm again.
Book pursuit_atoms(const std::vector<float>& rows, size_t dim, size_t s, uint64_t seed) {
  Book atoms = k_means(rows, dim, kAtoms, seed);
  unit_norm(atoms);
  const size_t n_rows = rows.size() / dim;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<float> left = rows;
    struct Use {
      size_t row, atom;
      float coefficient;
    };
    std::vector<Use> uses;
    pursue(atoms, s, left.data(), n_rows, dim, [&](size_t row, size_t atom, float c) {
      uses.push_back({row, atom, c});
    });
    std::vector<float> move(dim * kAtoms, 0.0f), energy(kAtoms, 1e-20f);
    for (const Use& use : uses) {
      energy[use.atom] += use.coefficient * use.coefficient;
      for (size_t d = 0; d < dim; ++d)
        move[d * kAtoms + use.atom] += use.coefficient * left[use.row * dim + d];
    }
    for (size_t i = 0; i < move.size(); ++i) atoms.entries[i] += move[i] / energy[i % kAtoms];
    unit_norm(atoms);
  }
  return atoms;
}

// Books of one layer, keys or values.
struct Books {
  std::vector<Book> residual;                         // in order
  std::vector<std::vector<std::vector<Book>>> parts;  // [scheme][head][part]
  std::vector<std::vector<Book>> atoms;               // [scheme][part]: values are cut in two
};

// Keeps what is stored: [layer][side][token][heads * dim].
class RecordCache final : public llm::PassCache {
 public:
  RecordCache(const KvShape& shape, std::unique_ptr<KvCache> inner, std::vector<std::vector<float>>* into)
      : PassCache(shape, std::move(inner)), into_(into) {}
  void store(int layer, int position, const float* k, const float* v) override {
    const auto width = static_cast<size_t>(shape_.n_kv_heads * shape_.head_dim);
    for (size_t side = 0; side < 2; ++side)
      std::copy_n(side == 0 ? k : v, width,
                  &(*into_)[static_cast<size_t>(layer) * 2 + side][static_cast<size_t>(position) * width]);
    PassCache::store(layer, position, k, v);
  }

 private:
  std::vector<std::vector<float>>* into_;
};

class RecordSource final : public llm::KvSource {
 public:
  explicit RecordSource(std::vector<std::vector<float>>* into) : into_(into) {}
  std::string name() const override { return "record"; }
  uint64_t content_hash() const override { return 0; }
  Result<std::unique_ptr<KvCache>> make(const KvShape& shape) const override {
    FRUGAL_TRY(auto inner, llm::make_kv_cache(llm::KvFormat::kF32, shape));
    return std::unique_ptr<KvCache>(std::make_unique<RecordCache>(shape, std::move(inner), into_));
  }

 private:
  std::vector<std::vector<float>>* into_;
};

struct Sample {
  std::vector<std::vector<float>> rows;  // [layer * 2 + side]: [n, heads * dim]
  std::vector<int> positions;            // [n]
};

Result<Sample> sample(std::shared_ptr<const llm::Model> model,
                      std::span<const std::vector<llm::Token>> windows, int threads) {
  const llm::ModelInfo& info = model->info();
  const auto width = static_cast<size_t>(info.n_kv_heads * info.head_dim);
  int longest = 0;
  for (const auto& window : windows) longest = std::max(longest, static_cast<int>(window.size()));
  std::vector<std::vector<float>> at(static_cast<size_t>(2 * info.n_layers),
                                     std::vector<float>(static_cast<size_t>(longest) * width));
  llm::EngineOptions options;
  options.n_threads = threads;
  options.n_ctx = longest;
  options.max_sequences = 1;
  options.kv_source = std::make_shared<RecordSource>(&at);
  FRUGAL_TRY(const auto engine, llm::Engine::create(model, options));
  Sample all;
  all.rows.resize(at.size());
  for (const auto& window : windows) {
    if (all.positions.size() >= static_cast<size_t>(kTokensRead)) break;
    FRUGAL_TRY(const llm::SequenceId sequence, engine->open_sequence());
    FRUGAL_TRY_STATUS(engine->prefill(sequence, window, nullptr));
    engine->close_sequence(sequence);
    for (size_t i = 4; i < window.size(); ++i) all.positions.push_back(static_cast<int>(i));
    for (size_t i = 0; i < at.size(); ++i)
      all.rows[i].insert(all.rows[i].end(), at[i].begin() + static_cast<ptrdiff_t>(4 * width),
                         at[i].begin() + static_cast<ptrdiff_t>(window.size() * width));
  }
  return all;
}

bool wanted(const Scheme& scheme, const std::vector<std::string>& names) {
  return std::find(names.begin(), names.end(), scheme.name) != names.end();
}

// Vectors of heads from [n, heads * dim]: of one head, or (-1) of all, at most kRowsTrained.
std::vector<float> vectors(const std::vector<float>& rows, size_t heads, size_t dim, int head) {
  const size_t n = rows.size() / (heads * dim) * (head < 0 ? heads : 1);
  const size_t step = std::max<size_t>(1, n / kRowsTrained);
  std::vector<float> out;
  for (size_t i = 0; i < n; i += step) {
    const size_t at = head < 0 ? i * dim : (i * heads + static_cast<size_t>(head)) * dim;
    out.insert(out.end(), rows.begin() + static_cast<ptrdiff_t>(at),
               rows.begin() + static_cast<ptrdiff_t>(at + dim));
  }
  return out;
}

std::vector<float> columns(const std::vector<float>& rows, size_t dim, size_t first, size_t n) {
  std::vector<float> out;
  for (size_t at = first; at < rows.size(); at += dim)
    out.insert(out.end(), rows.begin() + static_cast<ptrdiff_t>(at),
               rows.begin() + static_cast<ptrdiff_t>(at + n));
  return out;
}

Books train(const std::vector<float>& rows, size_t heads, size_t dim, bool values,
            const std::vector<float>& unturned, const std::vector<std::string>& names, uint64_t seed) {
  Books books;
  size_t n_residual = 0;
  for (const Scheme& scheme : kSchemes) {
    if (wanted(scheme, names) && scheme.kind == Scheme::kResidual)
      n_residual = std::max(n_residual, scheme.n);
  }
  std::vector<float> left = vectors(rows, heads, dim, -1);
  for (size_t i = 0; i < n_residual; ++i) {
    books.residual.push_back(k_means(left, dim, kEntries, seed + i));
    subtract_nearest(books.residual.back(), left.data(), left.size() / dim, dim, nullptr);
  }
  for (const Scheme& scheme : kSchemes) {
    books.parts.emplace_back();
    books.atoms.emplace_back();
    if (!wanted(scheme, names)) continue;
    for (size_t head = 0; head < heads && scheme.kind == Scheme::kProduct; ++head) {
      const std::vector<float> own = vectors(rows, heads, dim, static_cast<int>(head));
      books.parts.back().emplace_back();
      for (size_t first = 0; first < dim; first += scheme.n)
        books.parts.back().back().push_back(
            k_means(columns(own, dim, first, scheme.n), scheme.n, kEntries, seed));
    }
    if (scheme.kind != Scheme::kPursuit) continue;
    const std::vector<float> own = vectors(unturned, heads, dim, -1);
    const size_t n_parts = values ? 2 : 1, part = dim / n_parts;
    for (size_t i = 0; i < n_parts; ++i)
      books.atoms.back().push_back(
          pursuit_atoms(columns(own, dim, i * part, part), part, scheme.n / n_parts, seed));
  }
  return books;
}

// Decodes a block of 64 tokens of one head in place.
void code(const Scheme& scheme, const Books& books, const llm::Dictionary& dictionary, const CodedBlock& at,
          float* block) {
  const auto dim = static_cast<size_t>(dictionary.head_dim);
  const auto idx = static_cast<size_t>(&scheme - kSchemes);
  std::vector<float> left(block, block + kKvBlock * dim), sum(kKvBlock * dim, 0.0f);
  if (scheme.kind == Scheme::kResidual) {
    for (size_t i = 0; i < scheme.n; ++i)
      subtract_nearest(books.residual[i], left.data(), kKvBlock, dim, sum.data());
  } else if (scheme.kind == Scheme::kProduct) {
    const auto& parts = books.parts[idx][static_cast<size_t>(at.head)];
    for (size_t i = 0; i < parts.size(); ++i)
      subtract_nearest(parts[i], &left[i * scheme.n], kKvBlock, dim, &sum[i * scheme.n]);
  } else {
    std::vector<float> turned(dim);
    const auto turn = [&](std::vector<float>& rows, int sign) {
      for (size_t t = 0; t < kKvBlock && !at.values; ++t) {
        llm::turn_to(dictionary, at.layer, sign * (at.first_position + static_cast<int>(t)), &rows[t * dim],
                     turned.data());
        std::copy(turned.begin(), turned.end(), &rows[t * dim]);
      }
    };
    turn(left, -1);
    const auto& parts = books.atoms[idx];
    for (size_t i = 0; i < parts.size(); ++i) {
      const size_t first = i * parts[i].dim;
      pursue(parts[i], scheme.n / parts.size(), &left[first], kKvBlock, dim,
             [&](size_t row, size_t atom, float coefficient) {
               for (size_t d = 0; d < parts[i].dim; ++d)
                 sum[row * dim + first + d] += coefficient * parts[i].at(d, atom);
             });
    }
    turn(sum, 1);
  }
  std::copy(sum.begin(), sum.end(), block);
}

}  // namespace

std::vector<std::string> book_rival_names() {
  std::vector<std::string> names;
  for (const Scheme& scheme : kSchemes) names.push_back(scheme.name);
  return names;
}

bool is_book_rival(const std::string& name) {
  const std::vector<std::string> names = book_rival_names();
  return std::find(names.begin(), names.end(), name) != names.end();
}

Result<std::vector<KvRival>> book_rivals(std::shared_ptr<const llm::Model> model,
                                         std::shared_ptr<const llm::Dictionary> dictionary,
                                         std::span<const std::vector<llm::Token>> windows, int threads,
                                         const std::vector<std::string>& names,
                                         const std::function<bool(double)>& progress) {
  FRUGAL_TRY(const Sample sampled, sample(model, windows, threads));
  const auto heads = static_cast<size_t>(dictionary->n_kv_heads),
             dim = static_cast<size_t>(dictionary->head_dim);
  auto books = std::make_shared<std::vector<Books>>(sampled.rows.size());
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{false};
  ThreadTeam team(threads > 0 ? threads : usable_processors());
  team.run([&](TeamMember member) {
    while (!stop) {
      const size_t idx = next.fetch_add(1);
      if (idx >= books->size()) break;
      const bool values = idx % 2 == 1;
      std::vector<float> unturned = sampled.rows[idx], turned(dim);
      for (size_t at = 0; at < unturned.size() && !values; at += dim) {
        llm::turn_to(*dictionary, static_cast<int>(idx / 2), -sampled.positions[at / (heads * dim)],
                     &sampled.rows[idx][at], turned.data());
        std::copy(turned.begin(), turned.end(), &unturned[at]);
      }
      (*books)[idx] = train(sampled.rows[idx], heads, dim, values, unturned, names, idx * 1000);
      if (member.idx == 0 && !progress(static_cast<double>(idx + 1) / static_cast<double>(books->size())))
        stop = true;
    }
  });
  if (stop) return Error{ErrorCode::kCancelled, "stopped while training the books of rivals"};
  std::vector<KvRival> rivals;
  for (const Scheme& scheme : kSchemes) {
    if (!wanted(scheme, names)) continue;
    uint64_t bytes = 0;  // of the books, as halves
    const auto count = [&](const Book& book) { bytes += 2 * book.entries.size(); };
    const auto idx = static_cast<size_t>(&scheme - kSchemes);
    for (const Books& of : *books) {
      for (size_t i = 0; i < of.residual.size() && scheme.kind == Scheme::kResidual && i < scheme.n; ++i)
        count(of.residual[i]);
      for (const auto& parts : of.parts[idx]) std::for_each(parts.begin(), parts.end(), count);
      std::for_each(of.atoms[idx].begin(), of.atoms[idx].end(), count);
    }
    rivals.push_back({scheme.name, scheme.bits,
                      rival_source(scheme.name,
                                   [&scheme, books, dictionary](float* block, const CodedBlock& at) {
                                     code(scheme,
                                          (*books)[static_cast<size_t>(at.layer) * 2 + (at.values ? 1 : 0)],
                                          *dictionary, at, block);
                                   }),
                      bytes});
  }
  return rivals;
}

}  // namespace frugal::cli
