// Names of the cache formats.
#include <iterator>

#include "base/text.h"
#include "frugal/llm.h"

namespace frugal::llm {
namespace {

struct NamedFormat {
  KvFormat format;
  std::string_view name;
};
constexpr NamedFormat kFormats[] = {{KvFormat::kF32, "f32"},
                                    {KvFormat::kF16, "f16"},
                                    {KvFormat::kBF16, "bf16"},
                                    {KvFormat::kQ8_0, "q8_0"},
                                    {KvFormat::kCsr, "csr"}};

}  // namespace

Result<KvFormat> parse_kv_format(std::string_view name) {
  std::string known;
  for (const NamedFormat& format : kFormats) {
    if (format.name == name) return format.format;
    known += (known.empty() ? "" : ", ") + std::string(format.name);
  }
  return Error{ErrorCode::kInvalidArgument,
               strf("unknown cache format '%s'; there are %s", utf8_sanitized(name).c_str(), known.c_str())};
}

std::string_view kv_format_name(KvFormat format) {
  for (const NamedFormat& named : kFormats) {
    if (named.format == format) return named.name;
  }
  return "unknown";
}

}  // namespace frugal::llm
