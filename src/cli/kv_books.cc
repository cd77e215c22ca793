#include "cli/kv_books.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <queue>

#include "base/team.h"
#include "cli/sparse_atoms.h"
#include "cli/vector_books.h"
#include "llm/kv/kv_cache.h"

namespace frugal::cli {
namespace {

using llm::kKvBlock;
using llm::KvSide;

constexpr size_t kAtoms = 1024;         // of the pursuit, and as many more from a prompt
constexpr size_t kMaxBooks = 32;        // of a residual quantiser
constexpr int kRounds = 6;              // of k-means, and of the pursuit's dictionary
constexpr size_t kRowsTrained = 10240;  // of a head; of the pursuit, of a layer

struct Scheme {
  const char* name;
  enum Kind { kResidual, kProduct, kPursuit } kind;
  double bits;  // a channel
  size_t n;     // for 64 channels: parts of a product quantiser, atoms of the pursuit
  bool orthogonal = false, online = false;
};
constexpr Scheme kSchemes[] = {{"residual VQ 1-bit", Scheme::kResidual, 1, 0},
                               {"residual VQ 1.5-bit", Scheme::kResidual, 1.5, 0},
                               {"residual VQ 2-bit", Scheme::kResidual, 2, 0},
                               {"residual VQ 2.6-bit", Scheme::kResidual, 2.6, 0},
                               {"residual VQ 3.5-bit", Scheme::kResidual, 3.5, 0},
                               {"product VQ 1-bit", Scheme::kProduct, 1, 8},
                               {"product VQ 1.5-bit", Scheme::kProduct, 1.5, 12},
                               {"product VQ 2-bit", Scheme::kProduct, 2, 16},
                               {"product VQ 2.6-bit", Scheme::kProduct, 2.6, 21},
                               {"product VQ 3.5-bit", Scheme::kProduct, 3.5, 28},
                               {"CSR paper 1-bit", Scheme::kPursuit, 1, 2, false, true},
                               {"CSR paper 1-bit offline", Scheme::kPursuit, 1, 2},
                               {"CSR paper 1-bit OMP", Scheme::kPursuit, 1, 2, true, true},
                               {"CSR paper 2-bit", Scheme::kPursuit, 2, 4, false, true},
                               {"CSR paper 2-bit offline", Scheme::kPursuit, 2, 4},
                               {"CSR paper 2-bit OMP", Scheme::kPursuit, 2, 4, true, true}};

size_t scaled(size_t n, size_t dim) { return n * dim / 64; }

bool wanted(const Scheme& scheme, const std::vector<std::string>& names) {
  return std::find(names.begin(), names.end(), scheme.name) != names.end();
}

// A head's vectors in coordinates where an error costs its square: z = sqrt(weight) * analysis (x - mean).
class MetricSpace {
 public:
  MetricSpace(std::shared_ptr<const llm::Dictionary> dictionary, int layer, KvSide side, int head)
      : dictionary_(std::move(dictionary)),
        basis_(&dictionary_->basis(layer, side, head)),
        layer_(layer),
        keys_(side == KvSide::kKeys) {
    for (const float weight : basis_->weight) roots_.push_back(std::sqrt(std::max(weight, 1e-20f)));
  }
  size_t dim() const { return roots_.size(); }

  // Of x less the mean; values are divided by their token's scale, which is returned.
  float forward(const float* x, float* z) const {
    double energy = 0, weight = 0;
    for (size_t i = 0; i < dim(); ++i) {
      float y = 0;
      for (size_t j = 0; j < dim(); ++j) y += basis_->analysis[i * dim() + j] * x[j];
      z[i] = roots_[i] * y;
      energy += static_cast<double>(z[i] * z[i]);
      weight += std::pow(static_cast<double>(roots_[i] * basis_->spread[i]), 2);
    }
    if (keys_) return 1;
    const float scale = llm::token_scale(llm::token_scale_code(static_cast<float>(energy / weight)));
    for (size_t i = 0; i < dim(); ++i) z[i] /= scale;
    return scale;
  }
  void backward(const float* z, float scale, float* x) const {
    for (size_t i = 0; i < dim(); ++i) {
      x[i] = 0;
      for (size_t j = 0; j < dim(); ++j)
        x[i] += basis_->synthesis[i * dim() + j] * (scale * z[j] / roots_[j]);
    }
  }
  void mean_at(int position, float* mean) const {
    std::copy(basis_->mean.begin(), basis_->mean.end(), mean);
    if (keys_) llm::turn_to(*dictionary_, layer_, position, basis_->mean.data(), mean);
  }

 private:
  std::shared_ptr<const llm::Dictionary> dictionary_;
  const llm::HeadBasis* basis_;
  int layer_;
  bool keys_;
  std::vector<float> roots_;
};

// Of one layer and side.
struct Books {
  std::vector<MetricSpace> spaces;                     // [heads]
  std::vector<ResidualQuantiser> residual;             // [heads]
  std::vector<std::vector<ProductQuantiser>> product;  // [scheme][head]
  std::vector<std::vector<Book>> atoms;                // [scheme][part]: values are cut in two
};

// At most kRowsTrained of n rows, evenly.
std::vector<size_t> picked(size_t n) {
  std::vector<size_t> rows;
  const size_t step = std::max<size_t>(1, n / kRowsTrained);
  for (size_t i = 0; i < n; i += step) rows.push_back(i);
  return rows;
}

std::vector<float> columns(const std::vector<float>& rows, size_t dim, size_t first, size_t n) {
  std::vector<float> out;
  for (size_t at = first; at < rows.size(); at += dim)
    out.insert(out.end(), rows.begin() + static_cast<ptrdiff_t>(at),
               rows.begin() + static_cast<ptrdiff_t>(at + n));
  return out;
}

void train_in_metric(const llm::DictionaryTrainer& trainer,
                     const std::shared_ptr<const llm::Dictionary>& dictionary, int layer, KvSide side,
                     const std::vector<std::string>& names, uint64_t seed, Books& books) {
  const auto any = [&](Scheme::Kind kind) {
    return std::any_of(std::begin(kSchemes), std::end(kSchemes),
                       [&](const Scheme& s) { return s.kind == kind && wanted(s, names); });
  };
  if (!any(Scheme::kResidual) && !any(Scheme::kProduct)) return;
  books.product.resize(std::size(kSchemes));
  for (int head = 0; head < dictionary->n_kv_heads; ++head) {
    books.spaces.emplace_back(dictionary, layer, side, head);
    const MetricSpace& space = books.spaces.back();
    const auto all = trainer.rows(layer, side, head);
    std::vector<float> z, shares, one(space.dim());
    for (const size_t r : picked(all.shares.size())) {
      space.forward(&all.x[r * space.dim()], one.data());
      z.insert(z.end(), one.begin(), one.end());
      shares.push_back(all.shares[r]);
    }
    if (any(Scheme::kResidual))
      books.residual.push_back(
          ResidualQuantiser::train(z, shares, space.dim(), scaled(kMaxBooks, space.dim()), kRounds, seed));
    for (const Scheme& scheme : kSchemes) {
      if (scheme.kind != Scheme::kProduct || !wanted(scheme, names)) continue;
      books.product[static_cast<size_t>(&scheme - kSchemes)].push_back(
          ProductQuantiser::train(z, shares, space.dim(), scaled(scheme.n, space.dim()), kRounds, seed));
    }
  }
}

void train_atoms(const llm::DictionaryTrainer& trainer, const llm::Dictionary& dictionary, int layer,
                 KvSide side, const std::vector<std::string>& names, uint64_t seed, Books& books) {
  const auto dim = static_cast<size_t>(dictionary.head_dim);
  const size_t n_parts = side == KvSide::kValues ? 2 : 1, part = dim / n_parts;
  std::vector<float> rows, turned(dim);
  books.atoms.resize(std::size(kSchemes));
  for (const Scheme& scheme : kSchemes) {
    if (scheme.kind != Scheme::kPursuit || !wanted(scheme, names)) continue;
    const auto idx = static_cast<size_t>(&scheme - kSchemes);
    for (int head = 0; head < dictionary.n_kv_heads && rows.empty(); ++head) {
      const std::vector<float> own = trainer.vectors(layer, side, head);
      for (const size_t i : picked(own.size() / dim * static_cast<size_t>(dictionary.n_kv_heads))) {
        const size_t t = i / static_cast<size_t>(dictionary.n_kv_heads);
        turned.assign(&own[t * dim], &own[t * dim] + dim);
        if (side == KvSide::kKeys)
          llm::turn_to(dictionary, layer, -trainer.positions()[t], &own[t * dim], turned.data());
        rows.insert(rows.end(), turned.begin(), turned.end());
      }
    }
    // Schemes of as many atoms share them.
    for (size_t before = 0; before < idx && books.atoms[idx].empty(); ++before) {
      if (kSchemes[before].kind == Scheme::kPursuit && kSchemes[before].n == scheme.n)
        books.atoms[idx] = books.atoms[before];
    }
    for (size_t i = 0; i < n_parts && books.atoms[idx].size() < n_parts; ++i)
      books.atoms[idx].push_back(pursuit_atoms(columns(rows, dim, i * part, part), part, kAtoms,
                                               scaled(scheme.n, dim) / n_parts, kRounds, seed));
  }
}

// Books of each head, [layer, side, head]: one after the other to where the error falls most.
std::vector<size_t> allotted_books(const std::vector<Books>& books, const llm::Dictionary& dictionary,
                                   double bits) {
  const auto heads = static_cast<size_t>(dictionary.n_kv_heads), n_bases = books.size() * heads;
  const double channels = static_cast<double>(n_bases) * dictionary.head_dim;
  auto left = static_cast<size_t>((bits * channels - static_cast<double>(n_bases / 2) * llm::kScaleBits) / 8);
  std::vector<size_t> n(n_bases, 0);
  std::priority_queue<std::pair<double, size_t>> offers;
  const auto offer = [&](size_t base) {
    const auto& error = books[base / heads].residual[base % heads].error;
    if (n[base] + 1 < error.size()) offers.push({error[n[base]] - error[n[base] + 1], base});
  };
  for (size_t base = 0; base < n_bases; ++base) offer(base);
  for (; left > 0 && !offers.empty(); --left) {
    const size_t base = offers.top().second;
    offers.pop();
    ++n[base];
    offer(base);
  }
  return n;
}

// A codec of blocks that stand in the metric of the dictionary: `change(rows z, side index, head)`.
template <typename F>
BlockCodec metric_codec(std::shared_ptr<const std::vector<Books>> books, F change) {
  return [books, change](float* block, const CodedBlock& at) {
    const size_t side = static_cast<size_t>(at.layer) * 2 + (at.values ? 1 : 0);
    const MetricSpace& space = (*books)[side].spaces[static_cast<size_t>(at.head)];
    const size_t dim = space.dim();
    std::vector<float> z(kKvBlock * dim), mean(kKvBlock * dim);
    float scale[kKvBlock];
    for (size_t t = 0; t < kKvBlock; ++t) {
      space.mean_at(at.first_position + static_cast<int>(t), &mean[t * dim]);
      for (size_t d = 0; d < dim; ++d) block[t * dim + d] -= mean[t * dim + d];
      scale[t] = space.forward(block + t * dim, &z[t * dim]);
    }
    change(z.data(), side, static_cast<size_t>(at.head));
    for (size_t t = 0; t < kKvBlock; ++t) {
      space.backward(&z[t * dim], scale[t], block + t * dim);
      for (size_t d = 0; d < dim; ++d) block[t * dim + d] += mean[t * dim + d];
    }
  };
}

// Keys [n, dim] to before RoPE (sign -1) and back.
void turn_rows(const llm::Dictionary& dictionary, int layer, int first_position, int sign,
               std::vector<float>& rows) {
  const auto dim = static_cast<size_t>(dictionary.head_dim);
  std::vector<float> turned(dim);
  for (size_t t = 0; t < rows.size() / dim; ++t) {
    llm::turn_to(dictionary, layer, sign * (first_position + static_cast<int>(t)), &rows[t * dim],
                 turned.data());
    std::copy(turned.begin(), turned.end(), &rows[t * dim]);
  }
}

BlockCodec pursuit_codec(const Scheme& scheme, std::shared_ptr<const llm::Dictionary> dictionary,
                         std::shared_ptr<const std::vector<Book>> parts) {
  return [&scheme, dictionary, parts](float* block, const CodedBlock& at) {
    const auto dim = static_cast<size_t>(dictionary->head_dim);
    std::vector<float> left(block, block + kKvBlock * dim);
    if (!at.values) turn_rows(*dictionary, at.layer, at.first_position, -1, left);
    std::vector<float> sum(left.size(), 0.0f);
    for (size_t i = 0; i < parts->size(); ++i) {
      const Book& atoms = (*parts)[i];
      const size_t first = i * atoms.dim;
      pursue(atoms, scaled(scheme.n, dim) / parts->size(), scheme.orthogonal, &left[first], kKvBlock, dim,
             [&](size_t row, size_t atom, float coefficient) {
               for (size_t d = 0; d < atoms.dim; ++d)
                 sum[row * dim + first + d] += coefficient * atoms.at(d, atom);
             });
    }
    if (!at.values) turn_rows(*dictionary, at.layer, at.first_position, 1, sum);
    std::copy(sum.begin(), sum.end(), block);
  };
}

// The paper's reverse sequential sampling: the newest vectors of the prompt, all heads, as further atoms.
PromptCodec online_codec(const Scheme& scheme, std::shared_ptr<const llm::Dictionary> dictionary,
                         std::shared_ptr<const std::vector<Books>> books) {
  return [&scheme, dictionary, books](int layer, bool values, const std::vector<float>& rows) {
    const auto dim = static_cast<size_t>(dictionary->head_dim),
               heads = static_cast<size_t>(dictionary->n_kv_heads);
    const size_t n = rows.size() / dim, n_taken = std::min(n, kAtoms);
    std::vector<float> taken(rows.end() - static_cast<ptrdiff_t>(n_taken * dim), rows.end()), turned(dim);
    for (size_t i = 0; i < n_taken && !values; ++i) {
      const auto position = static_cast<int>((n - n_taken + i) / heads);
      llm::turn_to(*dictionary, layer, -position, &taken[i * dim], turned.data());
      std::copy(turned.begin(), turned.end(), &taken[i * dim]);
    }
    auto parts = std::make_shared<std::vector<Book>>();
    for (const Book& atoms : (*books)[static_cast<size_t>(2 * layer + (values ? 1 : 0))]
                                 .atoms[static_cast<size_t>(&scheme - kSchemes)])
      parts->push_back(with_online_atoms(atoms, columns(taken, dim, parts->size() * atoms.dim, atoms.dim)));
    return pursuit_codec(scheme, dictionary, std::move(parts));
  };
}

// Codes the keys and values of a layer with atoms that all sequences share.
BlockCodec offline_codec(const Scheme& scheme, std::shared_ptr<const llm::Dictionary> dictionary,
                         std::shared_ptr<const std::vector<Books>> books) {
  std::vector<BlockCodec> codecs;
  for (const Books& of : *books)
    codecs.push_back(pursuit_codec(
        scheme, dictionary,
        std::make_shared<const std::vector<Book>>(of.atoms[static_cast<size_t>(&scheme - kSchemes)])));
  return [codecs](float* block, const CodedBlock& at) {
    codecs[static_cast<size_t>(2 * at.layer + (at.values ? 1 : 0))](block, at);
  };
}

KvRival rival_of(const Scheme& scheme, std::shared_ptr<const llm::Dictionary> dictionary,
                 std::shared_ptr<const std::vector<Books>> books, int prompt_tokens) {
  KvRival rival;
  rival.name = scheme.name;
  rival.bits = scheme.bits;
  const auto count = [&](const Book& book) { rival.book_bytes += 2 * book.entries.size(); };  // halves
  const auto heads = static_cast<size_t>(dictionary->n_kv_heads);
  const auto idx = static_cast<size_t>(&scheme - kSchemes);
  if (scheme.kind == Scheme::kResidual) {
    const std::vector<size_t> n = allotted_books(*books, *dictionary, scheme.bits);
    for (size_t base = 0; base < n.size(); ++base) {
      const auto& own = (*books)[base / heads].residual[base % heads].books;
      std::for_each_n(own.begin(), n[base], count);
    }
    rival.source =
        rival_source(rival.name, metric_codec(books, [books, n, heads](float* z, size_t side, size_t head) {
                       (*books)[side].residual[head].code(z, kKvBlock, n[side * heads + head]);
                     }));
  } else if (scheme.kind == Scheme::kProduct) {
    for (const Books& of : *books) {
      for (const ProductQuantiser& own : of.product[idx])
        std::for_each(own.books.begin(), own.books.end(), count);
    }
    const auto dim = static_cast<size_t>(dictionary->head_dim);
    rival.bits =
        (8.0 * static_cast<double>(scaled(scheme.n, dim)) + 0.5 * llm::kScaleBits) / static_cast<double>(dim);
    rival.source =
        rival_source(rival.name, metric_codec(books, [books, idx, dim](float* z, size_t side, size_t head) {
                       (*books)[side].product[idx][head].code(z, kKvBlock, dim);
                     }));
  } else {
    for (const Books& of : *books) std::for_each(of.atoms[idx].begin(), of.atoms[idx].end(), count);
    if (scheme.online) {
      rival.sequence_bytes = rival.book_bytes;
      rival.source = prompt_rival_source(rival.name, prompt_tokens, online_codec(scheme, dictionary, books));
    } else {
      rival.source = rival_source(rival.name, offline_codec(scheme, dictionary, books));
    }
  }
  return rival;
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

Result<std::vector<KvRival>> book_rivals(std::shared_ptr<const llm::Dictionary> dictionary,
                                         const llm::DictionaryTrainer& trainer, int threads,
                                         const std::vector<std::string>& names, int prompt_tokens,
                                         const std::function<bool(double)>& progress) {
  auto books = std::make_shared<std::vector<Books>>(static_cast<size_t>(2 * dictionary->n_layers));
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{false};
  ThreadTeam team(threads > 0 ? threads : usable_processors());
  team.run([&](TeamMember member) {
    while (!stop) {
      const size_t idx = next.fetch_add(1);
      if (idx >= books->size()) break;
      const auto layer = static_cast<int>(idx / 2);
      const KvSide side = idx % 2 == 0 ? KvSide::kKeys : KvSide::kValues;
      train_in_metric(trainer, dictionary, layer, side, names, idx * 1000, (*books)[idx]);
      train_atoms(trainer, *dictionary, layer, side, names, idx * 1000, (*books)[idx]);
      if (member.idx == 0 && !progress(static_cast<double>(idx + 1) / static_cast<double>(books->size())))
        stop = true;
    }
  });
  if (stop) return Error{ErrorCode::kCancelled, "stopped while training the books of rivals"};
  std::vector<KvRival> rivals;
  for (const Scheme& scheme : kSchemes) {
    if (wanted(scheme, names)) rivals.push_back(rival_of(scheme, dictionary, books, prompt_tokens));
  }
  return rivals;
}

}  // namespace frugal::cli
