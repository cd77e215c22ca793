// The metadata of a GGUF file as typed values.
#include <cinttypes>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "base/text.h"
#include "llm/model/gguf.h"

namespace frugal::llm {
namespace {

const char* type_name(GgufValueType type) {
  static const char* const kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                       "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<uint32_t>(type)];
}

// Element `idx` of a run of values of fixed size; the caller has checked type and count.
template <typename T>
T load(std::span<const std::byte> payload, uint64_t idx) {
  T value;
  std::memcpy(&value, payload.data() + idx * sizeof(T), sizeof(T));
  return value;
}

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// `text` cut to `max_chars` bytes at the boundary of a character, with control characters spelled out.
std::string shortened(std::string_view text, size_t max_chars) {
  const bool cut = text.size() > max_chars;
  std::string out;
  // Cut first: a chat template or a hostile string may have megabytes.
  std::string_view head = text.substr(0, max_chars);
  if (cut) head = head.substr(0, utf8_complete_prefix(head));
  for (const char c : utf8_sanitized(head)) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      out += strf("\\x%02x", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return cut ? out + "..." : out;
}

std::string quoted(std::string_view text, size_t max_chars) {
  std::string out = "\"";
  out += shortened(text, max_chars);
  out += '"';
  return out;
}

}  // namespace

std::string printable_name(std::string_view name) { return shortened(name, 80); }

std::string GgufValue::type_label() const {
  return type == GgufValueType::kArray ? strf("array of %s", type_name(element_type)) : type_name(type);
}

std::optional<int64_t> GgufValue::integer(uint64_t index) const {
  if (index >= count) return std::nullopt;
  switch (type == GgufValueType::kArray ? element_type : type) {
    case GgufValueType::kU8:
      return load<uint8_t>(payload, index);
    case GgufValueType::kI8:
      return load<int8_t>(payload, index);
    case GgufValueType::kU16:
      return load<uint16_t>(payload, index);
    case GgufValueType::kI16:
      return load<int16_t>(payload, index);
    case GgufValueType::kU32:
      return load<uint32_t>(payload, index);
    case GgufValueType::kI32:
      return load<int32_t>(payload, index);
    case GgufValueType::kI64:
      return load<int64_t>(payload, index);
    case GgufValueType::kU64: {
      const auto value = load<uint64_t>(payload, index);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> GgufValue::number(uint64_t index) const {
  if (index >= count) return std::nullopt;
  const GgufValueType element = type == GgufValueType::kArray ? element_type : type;
  if (element == GgufValueType::kF32) return load<float>(payload, index);
  if (element == GgufValueType::kF64) return load<double>(payload, index);
  if (element == GgufValueType::kU64) return static_cast<double>(load<uint64_t>(payload, index));
  const auto whole = integer(index);
  return whole ? std::optional<double>(static_cast<double>(*whole)) : std::nullopt;
}

std::optional<bool> GgufValue::boolean(uint64_t index) const {
  if (index >= count || (type == GgufValueType::kArray ? element_type : type) != GgufValueType::kBool) {
    return std::nullopt;
  }
  return payload[index] != std::byte{0};
}

std::optional<std::string_view> GgufValue::string() const {
  if (type != GgufValueType::kString) return std::nullopt;
  return as_text(payload);
}

std::optional<std::vector<std::string_view>> GgufValue::strings() const {
  if (type != GgufValueType::kArray || element_type != GgufValueType::kString) return std::nullopt;
  std::vector<std::string_view> out;
  out.reserve(count);
  size_t at = 0;
  for (uint64_t i = 0; i < count; ++i) {
    uint64_t length = 0;
    std::memcpy(&length, payload.data() + at, sizeof length);
    out.push_back(as_text(payload.subspan(at + sizeof length, length)));
    at += sizeof length + length;
  }
  return out;
}

std::string GgufValue::display(size_t max_chars) const {
  const auto scalar = [&](uint64_t idx) -> std::string {
    if (const auto flag = boolean(idx)) return *flag ? "true" : "false";
    if (const auto whole = integer(idx)) return strf("%" PRId64, *whole);
    if (const auto value = number(idx)) return strf("%.9g", *value);
    return "?";
  };
  if (type == GgufValueType::kString) return quoted(as_text(payload), max_chars);
  if (type != GgufValueType::kArray) return scalar(0);
  constexpr uint64_t kShown = 6;
  std::string out = "[";
  size_t at = 0;
  for (uint64_t i = 0; i < count && i < kShown; ++i) {
    if (i > 0) out += ", ";
    if (element_type == GgufValueType::kString) {
      uint64_t length = 0;
      std::memcpy(&length, payload.data() + at, sizeof length);
      out += quoted(as_text(payload.subspan(at + sizeof length, length)), 24);
      at += sizeof length + length;
    } else {
      out += scalar(i);
    }
  }
  return out + (count > kShown ? strf(", ... %" PRIu64 " in all]", count) : "]");
}

namespace {

// The error for a key that is there and does not hold what is expected.
Error wrong_type(const GgufFile& file, const GgufValue& value, const char* expected) {
  return {ErrorCode::kCorrupt, strf("'%s': metadata key '%s' must be %s, but is %s (%s); convert the model "
                                    "again with a current llama.cpp",
                                    file.label().c_str(), printable_name(value.key).c_str(), expected,
                                    value.type_label().c_str(), value.display(40).c_str())};
}

Error missing_key(const GgufFile& file, std::string_view key, const char* expected) {
  return {ErrorCode::kCorrupt, strf("'%s': metadata key '%s' (%s) is missing; the file is not a complete "
                                    "model, or of an architecture that "
                                    "needs another reader",
                                    file.label().c_str(), printable_name(key).c_str(), expected)};
}

// What a scalar of type T is called in messages, and how to take it from a value. nullopt: it does not fit.
template <typename T>
struct Scalar;

template <>
struct Scalar<uint32_t> {
  static constexpr const char* kName = "an integer from 0 to 4294967295";
  static std::optional<uint32_t> get(const GgufValue& value, uint64_t idx = 0) {
    const auto whole = value.integer(idx);
    if (!whole || *whole < 0 || *whole > std::numeric_limits<uint32_t>::max()) return std::nullopt;
    return static_cast<uint32_t>(*whole);
  }
};

template <>
struct Scalar<int32_t> {
  static constexpr const char* kName = "an integer from -2147483648 to 2147483647";
  static std::optional<int32_t> get(const GgufValue& value, uint64_t idx = 0) {
    const auto whole = value.integer(idx);
    if (!whole || *whole < std::numeric_limits<int32_t>::min() ||
        *whole > std::numeric_limits<int32_t>::max()) {
      return std::nullopt;
    }
    return static_cast<int32_t>(*whole);
  }
};

template <>
struct Scalar<uint64_t> {
  static constexpr const char* kName = "an integer from 0 to 9223372036854775807";
  static std::optional<uint64_t> get(const GgufValue& value, uint64_t idx = 0) {
    const auto whole = value.integer(idx);
    if (!whole || *whole < 0) return std::nullopt;
    return static_cast<uint64_t>(*whole);
  }
};

template <>
struct Scalar<float> {
  static constexpr const char* kName = "a finite number";
  static std::optional<float> get(const GgufValue& value, uint64_t idx = 0) {
    const auto number = value.number(idx);
    // Also keeps out doubles beyond the range of a float, whose conversion would be undefined.
    if (!number || !(std::fabs(*number) <= std::numeric_limits<float>::max())) return std::nullopt;
    return static_cast<float>(*number);
  }
};

template <>
struct Scalar<bool> {
  static constexpr const char* kName = "a bool";
  static std::optional<bool> get(const GgufValue& value, uint64_t idx = 0) { return value.boolean(idx); }
};

template <>
struct Scalar<uint8_t> {  // an array of bools: std::vector<bool> is no array
  static constexpr const char* kName = "a bool";
  static std::optional<uint8_t> get(const GgufValue& value, uint64_t idx = 0) {
    const auto flag = value.boolean(idx);
    return flag ? std::optional<uint8_t>(*flag ? 1 : 0) : std::nullopt;
  }
};

template <>
struct Scalar<std::string_view> {
  static constexpr const char* kName = "a string";
  static std::optional<std::string_view> get(const GgufValue& value) { return value.string(); }
};

template <typename T>
Result<T> scalar_of(const GgufFile& file, const GgufValue& value) {
  if (value.type != GgufValueType::kArray) {
    if (const auto got = Scalar<T>::get(value)) return *got;
  }
  return wrong_type(file, value, Scalar<T>::kName);
}

template <typename T>
Result<T> require(const GgufFile& file, std::string_view key) {
  const GgufValue* value = file.find_value(key);
  if (value == nullptr) return missing_key(file, key, Scalar<T>::kName);
  return scalar_of<T>(file, *value);
}

template <typename T>
Result<T> find_or(const GgufFile& file, std::string_view key, T missing) {
  const GgufValue* value = file.find_value(key);
  if (value == nullptr) return missing;
  return scalar_of<T>(file, *value);
}

template <typename T>
Result<std::vector<T>> array_of(const GgufFile& file, const GgufValue& value) {
  const std::string expected = std::string("an array, each element ") + Scalar<T>::kName;
  if (value.type != GgufValueType::kArray) return wrong_type(file, value, expected.c_str());
  try {
    if constexpr (std::is_same_v<T, std::string_view>) {
      if (auto strings = value.strings()) return std::move(*strings);
      return wrong_type(file, value, expected.c_str());
    } else {
      std::vector<T> out;
      out.reserve(value.count);
      for (uint64_t i = 0; i < value.count; ++i) {
        const auto element = Scalar<T>::get(value, i);
        if (!element) return wrong_type(file, value, expected.c_str());
        out.push_back(*element);
      }
      return out;
    }
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kNoMemory,
                 strf("'%s': no memory for the %" PRIu64 " elements of metadata key '%s'",
                      file.label().c_str(), value.count, printable_name(value.key).c_str())};
  }
}

}  // namespace

Result<uint32_t> GgufFile::require_u32(std::string_view key) const { return require<uint32_t>(*this, key); }
Result<uint64_t> GgufFile::require_u64(std::string_view key) const { return require<uint64_t>(*this, key); }
Result<float> GgufFile::require_f32(std::string_view key) const { return require<float>(*this, key); }
Result<bool> GgufFile::require_bool(std::string_view key) const { return require<bool>(*this, key); }
Result<std::string_view> GgufFile::require_string(std::string_view key) const {
  return require<std::string_view>(*this, key);
}

Result<uint32_t> GgufFile::find_u32_or(std::string_view key, uint32_t missing) const {
  return find_or<uint32_t>(*this, key, missing);
}
Result<uint64_t> GgufFile::find_u64_or(std::string_view key, uint64_t missing) const {
  return find_or<uint64_t>(*this, key, missing);
}
Result<float> GgufFile::find_f32_or(std::string_view key, float missing) const {
  return find_or<float>(*this, key, missing);
}
Result<bool> GgufFile::find_bool_or(std::string_view key, bool missing) const {
  return find_or<bool>(*this, key, missing);
}
Result<std::string_view> GgufFile::find_string_or(std::string_view key, std::string_view missing) const {
  return find_or<std::string_view>(*this, key, missing);
}

template <typename T>
Result<std::vector<T>> GgufFile::require_array(std::string_view key) const {
  const GgufValue* value = find_value(key);
  if (value == nullptr) return missing_key(*this, key, "an array");
  return array_of<T>(*this, *value);
}

template <typename T>
Result<std::vector<T>> GgufFile::find_array_or_empty(std::string_view key) const {
  const GgufValue* value = find_value(key);
  if (value == nullptr) return std::vector<T>();
  return array_of<T>(*this, *value);
}

Result<std::vector<uint32_t>> GgufFile::require_u32_each(std::string_view key, size_t n) const {
  const GgufValue* value = find_value(key);
  if (value == nullptr) return missing_key(*this, key, "an integer, or an array of them");
  if (value->type != GgufValueType::kArray) {
    FRUGAL_TRY(const uint32_t all, scalar_of<uint32_t>(*this, *value));
    return std::vector<uint32_t>(n, all);
  }
  if (value->count != n) {
    return Error{ErrorCode::kCorrupt,
                 strf("'%s': metadata key '%s' holds %" PRIu64 " values where %zu are needed; "
                      "convert the model again with a current llama.cpp",
                      label_.c_str(), printable_name(key).c_str(), value->count, n)};
  }
  return array_of<uint32_t>(*this, *value);
}

#define FRUGAL_INSTANTIATE(T)                                                             \
  template Result<std::vector<T>> GgufFile::require_array<T>(std::string_view key) const; \
  template Result<std::vector<T>> GgufFile::find_array_or_empty<T>(std::string_view key) const;
FRUGAL_INSTANTIATE(uint32_t)
FRUGAL_INSTANTIATE(int32_t)
FRUGAL_INSTANTIATE(float)
FRUGAL_INSTANTIATE(uint8_t)
FRUGAL_INSTANTIATE(std::string_view)
#undef FRUGAL_INSTANTIATE

}  // namespace frugal::llm
