#include "llm/model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <numeric>

#include "base/check.h"
#include "base/text.h"

namespace frugal::llm {

static_assert(std::endian::native == std::endian::little, "GGUF values are read in place, as little-endian");

namespace {

// Limits far above any real model (llama.cpp's largest have some 50 keys and 2,000 tensors), so that a
// hostile count cannot make the tables many times as large as the file.
constexpr uint64_t kMaxValues = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 18;
constexpr uint64_t kMaxNameBytes = 1 << 16;
constexpr uint32_t kMaxDims = 4;
// The smallest entries: a key or name of one byte after its 8-byte length, then the fields.
constexpr uint64_t kMinValueBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

constexpr const char* kFetchAgain =
    "the file is damaged or was not copied in full: fetch it again and compare its checksum";

// Product or sum into *out; false when it does not fit.
bool multiply(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_mul_overflow(a, b, out); }
bool add(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_add_overflow(a, b, out); }

// Bytes of a value of fixed size; 0 for strings and arrays.
uint64_t fixed_size(GgufValueType type) {
  switch (type) {
    case GgufValueType::kU8:
    case GgufValueType::kI8:
    case GgufValueType::kBool:
      return 1;
    case GgufValueType::kU16:
    case GgufValueType::kI16:
      return 2;
    case GgufValueType::kU32:
    case GgufValueType::kI32:
    case GgufValueType::kF32:
      return 4;
    case GgufValueType::kU64:
    case GgufValueType::kI64:
    case GgufValueType::kF64:
      return 8;
    case GgufValueType::kString:
    case GgufValueType::kArray:
      return 0;
  }
  return 0;
}

unsigned long long ull(uint64_t value) { return value; }

}  // namespace

// Reads a file front to back. The first error ends the reading.
class GgufParser {
 public:
  GgufParser(GgufFile* file) : file_(*file), bytes_(file->bytes_) {}

  Status run() {
    FRUGAL_TRY_STATUS(read_header());
    FRUGAL_TRY_STATUS(read_values());
    FRUGAL_TRY_STATUS(read_alignment());
    FRUGAL_TRY_STATUS(read_tensors());
    return check_tensor_data();
  }

 private:
  Error corrupt(const std::string& what) const {
    return {ErrorCode::kCorrupt, strf("'%s': %s", file_.label_.c_str(), what.c_str())};
  }
  // The file ends while `what` is read.
  Error truncated(const std::string& what) const {
    return corrupt(strf("the file ends at byte %llu, inside %s (at byte %llu); %s", ull(bytes_.size()),
                        what.c_str(), ull(position_), kFetchAgain));
  }
  uint64_t remaining() const { return bytes_.size() - position_; }

  // Takes `size` bytes; the caller has checked remaining().
  std::span<const std::byte> take(uint64_t size) {
    const auto taken = bytes_.subspan(position_, size);
    position_ += size;
    return taken;
  }

  template <typename T>
  bool read(T* out) {
    if (remaining() < sizeof(T)) return false;
    std::memcpy(out, take(sizeof(T)).data(), sizeof(T));
    return true;
  }

  Status read_header() {
    if (bytes_.size() < 4) {
      return corrupt(
          strf("the file has only %zu bytes, too few for a GGUF model; %s", bytes_.size(), kFetchAgain));
    }
    const auto first = take(4);
    const std::string_view magic(reinterpret_cast<const char*>(first.data()), first.size());
    if (magic != "GGUF") {
      return corrupt(
          strf("this is not a GGUF file: it begins with '%s' instead of 'GGUF'; give a model in GGUF format "
               "(llama.cpp's convert_hf_to_gguf.py makes one from other formats)",
               printable_name(magic).c_str()));
    }
    if (!read(&file_.version_)) return truncated("the header");
    const uint32_t version = file_.version_;
    if (version == 0 || (version & 0xFFFF) == 0) {
      // The version is small, so its low half is 0 only when the bytes are swapped.
      if (version != 0) {
        return Error{
            ErrorCode::kUnsupported,
            strf("'%s': this GGUF file is big-endian; convert it with gguf-py's gguf_convert_endian.py",
                 file_.label_.c_str())};
      }
      return corrupt(strf("GGUF version 0 does not exist; %s", kFetchAgain));
    }
    if (version != 2 && version != 3) {
      return Error{
          ErrorCode::kUnsupported,
          strf("'%s': GGUF version %u is not supported (2 and 3 are); convert the model again with a current "
               "llama.cpp",
               file_.label_.c_str(), version)};
    }
    if (!read(&n_tensors_) || !read(&n_values_)) return truncated("the header");
    if (n_values_ > kMaxValues || n_values_ > remaining() / kMinValueBytes) {
      return corrupt(
          strf("the header at byte 16 announces %llu metadata keys, more than the file has room for; %s",
               ull(n_values_), kFetchAgain));
    }
    if (n_tensors_ > kMaxTensors || n_tensors_ > remaining() / kMinTensorBytes) {
      return corrupt(strf("the header at byte 8 announces %llu tensors, more than the file has room for; %s",
                          ull(n_tensors_), kFetchAgain));
    }
    return {};
  }

  // A length and that many characters. `what` describes it for messages.
  Result<std::string_view> read_string(const std::string& what) {
    uint64_t length = 0;
    const uint64_t at = position_;
    if (!read(&length)) return truncated("the length of " + what);
    if (length > remaining()) {
      return corrupt(strf("%s at byte %llu claims %llu bytes, but only %llu are left in the file; %s",
                          what.c_str(), ull(at), ull(length), ull(remaining()), kFetchAgain));
    }
    const auto taken = take(length);
    return std::string_view(reinterpret_cast<const char*>(taken.data()), taken.size());
  }

  // A key of the metadata or the name of a tensor: not empty, and of sane length.
  Result<std::string_view> read_name(const char* kind, uint64_t idx) {
    const uint64_t at = position_;
    FRUGAL_TRY(std::string_view name, read_string(strf("the name of %s %llu", kind, ull(idx))));
    if (name.empty() || name.size() > kMaxNameBytes) {
      return corrupt(strf("the name of %s %llu at byte %llu has %zu bytes (1 to %llu are allowed); %s", kind,
                          ull(idx), ull(at), name.size(), ull(kMaxNameBytes), kFetchAgain));
    }
    return name;
  }

  Status read_values() {
    for (uint64_t i = 0; i < n_values_; ++i) {
      GgufValue value;
      FRUGAL_TRY(value.key, read_name("metadata key", i));
      FRUGAL_TRY_STATUS(read_value(&value));
      file_.values_.push_back(value);
    }
    auto& order = file_.values_by_key_;
    order.resize(file_.values_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return file_.values_[a].key < file_.values_[b].key; });
    for (size_t i = 1; i < order.size(); ++i) {
      const std::string_view key = file_.values_[order[i]].key;
      if (key == file_.values_[order[i - 1]].key) {
        return corrupt(
            strf("metadata key '%s' stands in the file twice; %s", printable_name(key).c_str(), kFetchAgain));
      }
    }
    return {};
  }

  Status read_type(const GgufValue& value, GgufValueType* out) {
    uint32_t number = 0;
    const uint64_t at = position_;
    if (!read(&number)) return truncated(what_of(value));
    if (number > static_cast<uint32_t>(GgufValueType::kF64)) {
      return corrupt(strf("metadata key '%s' has the unknown value type %u at byte %llu; %s",
                          printable_name(value.key).c_str(), number, ull(at), kFetchAgain));
    }
    *out = static_cast<GgufValueType>(number);
    return {};
  }

  static std::string what_of(const GgufValue& value) {
    return strf("the value of metadata key '%s'", printable_name(value.key).c_str());
  }

  Status read_value(GgufValue* value) {
    FRUGAL_TRY_STATUS(read_type(*value, &value->type));
    if (value->type == GgufValueType::kString) {
      FRUGAL_TRY(const std::string_view text, read_string(what_of(*value)));
      value->payload = std::as_bytes(std::span(text));
      return {};
    }
    GgufValueType element_type = value->type;
    if (value->type == GgufValueType::kArray) {
      FRUGAL_TRY_STATUS(read_type(*value, &value->element_type));
      element_type = value->element_type;
      if (element_type == GgufValueType::kArray) {
        return Error{
            ErrorCode::kUnsupported,
            strf("'%s': metadata key '%s' at byte %llu is an array of arrays, which no known model uses; "
                 "convert the model again with a current llama.cpp",
                 file_.label_.c_str(), printable_name(value->key).c_str(), ull(position_))};
      }
      if (!read(&value->count)) return truncated(what_of(*value));
    }
    // An element takes its size, or 8 bytes of length for a string, at the least.
    const uint64_t least = element_type == GgufValueType::kString ? 8 : fixed_size(element_type);
    const uint64_t begin = position_;
    if (value->count > remaining() / least) {
      if (value->type != GgufValueType::kArray) return truncated(what_of(*value));
      return corrupt(strf(
          "metadata key '%s' at byte %llu announces an array of %llu elements, more than the %llu bytes "
          "left in the file can hold; %s",
          printable_name(value->key).c_str(), ull(begin), ull(value->count), ull(remaining()), kFetchAgain));
    }
    if (element_type == GgufValueType::kString) return read_string_elements(value);
    value->payload = take(value->count * least);
    if (element_type == GgufValueType::kBool) {
      for (const std::byte byte : value->payload) {
        if (byte > std::byte{1}) {
          return corrupt(
              strf("metadata key '%s' at byte %llu holds the byte %u where a bool must be 0 or 1; %s",
                   printable_name(value->key).c_str(), ull(begin), static_cast<unsigned>(byte), kFetchAgain));
        }
      }
    }
    return {};
  }

  // Walks over the elements of a string array. Kept free of allocation: vocabularies have 250,000 of them.
  Status read_string_elements(GgufValue* value) {
    const uint64_t begin = position_;
    for (uint64_t i = 0; i < value->count; ++i) {
      uint64_t length = 0;
      if (!read(&length) || length > remaining()) {
        return corrupt(strf(
            "element %llu of metadata key '%s' at byte %llu runs past the end of the file (%zu bytes); %s",
            ull(i), printable_name(value->key).c_str(), ull(position_), bytes_.size(), kFetchAgain));
      }
      position_ += length;
    }
    value->payload = bytes_.subspan(begin, position_ - begin);
    return {};
  }

  Status read_alignment() {
    FRUGAL_TRY(file_.alignment_, file_.find_u32_or("general.alignment", 32));
    if (file_.alignment_ < 8 || !std::has_single_bit(file_.alignment_)) {
      return corrupt(
          strf("general.alignment is %llu, but must be a power of two of at least 8; convert the model again "
               "with a current llama.cpp",
               ull(file_.alignment_)));
    }
    return {};
  }

  Status read_tensors() {
    for (uint64_t i = 0; i < n_tensors_; ++i) FRUGAL_TRY_STATUS(read_tensor(i));
    auto& order = file_.tensors_by_name_;
    order.resize(file_.tensors_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return file_.tensors_[a].name < file_.tensors_[b].name; });
    for (size_t i = 1; i < order.size(); ++i) {
      const std::string& name = file_.tensors_[order[i]].name;
      if (name == file_.tensors_[order[i - 1]].name) {
        return corrupt(
            strf("tensor '%s' stands in the file twice; %s", printable_name(name).c_str(), kFetchAgain));
      }
    }
    return {};
  }

  Status read_tensor(uint64_t idx) {
    GgufTensor tensor;
    FRUGAL_TRY(const std::string_view name, read_name("tensor", idx));
    tensor.name = name;
    const std::string shown = printable_name(name);
    const std::string what = strf("the description of tensor '%s'", shown.c_str());
    uint32_t n_dims = 0;
    const uint64_t at = position_;
    if (!read(&n_dims)) return truncated(what);
    if (n_dims < 1 || n_dims > kMaxDims) {
      return corrupt(strf("tensor '%s' at byte %llu has %u dimensions (1 to %u are allowed); %s",
                          shown.c_str(), ull(at), n_dims, kMaxDims, kFetchAgain));
    }
    uint64_t n_elements = 1;
    tensor.shape.resize(n_dims);
    for (uint64_t& size : tensor.shape) {
      if (!read(&size)) return truncated(what);
      // Half of the range: ggml and our own indices are signed.
      if (size == 0 || !multiply(n_elements, size, &n_elements) || n_elements > INT64_MAX) {
        return corrupt(strf("tensor '%s' at byte %llu has an impossible dimension of %llu; %s", shown.c_str(),
                            ull(at), ull(size), kFetchAgain));
      }
    }
    uint32_t type = 0;
    if (!read(&type) || !read(&tensor.offset)) return truncated(what);
    tensor.type = static_cast<TensorType>(type);
    if (const auto layout = type_layout(tensor.type)) {
      if (tensor.shape[0] % static_cast<uint64_t>(layout->block_size) != 0) {
        return corrupt(
            strf("tensor '%s' at byte %llu: its rows of %llu elements are not a whole number of %s blocks of "
                 "%d; %s",
                 shown.c_str(), ull(at), ull(tensor.shape[0]), tensor_type_label(tensor.type).c_str(),
                 layout->block_size, kFetchAgain));
      }
      if (!multiply(n_elements / static_cast<uint64_t>(layout->block_size),
                    static_cast<uint64_t>(layout->block_bytes), &tensor.bytes)) {
        return corrupt(strf("tensor '%s' at byte %llu has %llu elements, more bytes than can be counted; %s",
                            shown.c_str(), ull(at), ull(n_elements), kFetchAgain));
      }
    }
    if (tensor.offset % file_.alignment_ != 0) {
      return corrupt(
          strf("tensor '%s' at byte %llu has the data offset %llu, not a multiple of the alignment %llu; %s",
               shown.c_str(), ull(at), ull(tensor.offset), ull(file_.alignment_), kFetchAgain));
    }
    file_.tensors_.push_back(std::move(tensor));
    return {};
  }

  // Turns offsets into file offsets, and checks that each tensor lies inside the file and apart from the
  // others.
  Status check_tensor_data() {
    file_.data_offset_ = (position_ + file_.alignment_ - 1) / file_.alignment_ * file_.alignment_;
    std::vector<uint32_t> order(file_.tensors_.size());
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(),
              [&](uint32_t a, uint32_t b) { return file_.tensors_[a].offset < file_.tensors_[b].offset; });
    for (size_t i = 0; i < order.size(); ++i) {
      GgufTensor& tensor = file_.tensors_[order[i]];
      const std::string shown = printable_name(tensor.name);
      uint64_t end = 0;
      if (!add(tensor.offset, file_.data_offset_, &tensor.offset) ||
          !add(tensor.offset, tensor.bytes, &end) || tensor.offset > bytes_.size() || end > bytes_.size()) {
        return corrupt(strf(
            "the data of tensor '%s' (%s %s, %llu bytes at byte %llu) lies past the end of the file (%zu "
            "bytes); %s",
            shown.c_str(), tensor_type_label(tensor.type).c_str(), tensor.shape_label().c_str(),
            ull(tensor.bytes), ull(tensor.offset), bytes_.size(), kFetchAgain));
      }
      // The next one still counts from the start of the data: its own turn comes after this.
      uint64_t next = bytes_.size();
      if (i + 1 < order.size() && !add(file_.tensors_[order[i + 1]].offset, file_.data_offset_, &next)) {
        next = UINT64_MAX;  // found to be past the end in its own turn
      }
      if (!type_layout(tensor.type)) {
        tensor.bytes = std::min<uint64_t>(next, bytes_.size()) - tensor.offset;
      } else if (end > next) {
        return corrupt(strf("the data of tensors '%s' and '%s' overlap at byte %llu; %s", shown.c_str(),
                            printable_name(file_.tensors_[order[i + 1]].name).c_str(), ull(next),
                            kFetchAgain));
      }
    }
    return {};
  }

  GgufFile& file_;
  const std::span<const std::byte> bytes_;
  uint64_t position_ = 0;
  uint64_t n_tensors_ = 0, n_values_ = 0;
};

Result<GgufFile> GgufFile::parse(std::span<const std::byte> bytes, const std::string& label) {
  try {
    GgufFile file;
    file.bytes_ = bytes;
    file.label_ = label;
    FRUGAL_TRY_STATUS(GgufParser(&file).run());
    return file;
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kNoMemory,
                 strf("'%s': no memory for its tables of metadata and tensors; close other "
                      "programs or take a machine with more",
                      label.c_str())};
  }
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  FRUGAL_TRY(MappedFile mapped, MappedFile::open(path));
  FRUGAL_TRY(GgufFile file, parse(mapped.bytes(), path));
  file.file_ = std::move(mapped);  // the mapping stays where it is, and with it every view into it
  return file;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto at =
      std::lower_bound(tensors_by_name_.begin(), tensors_by_name_.end(), name,
                       [&](uint32_t idx, std::string_view key) { return tensors_[idx].name < key; });
  if (at == tensors_by_name_.end() || tensors_[*at].name != name) return nullptr;
  return &tensors_[*at];
}

std::span<const std::byte> GgufFile::data(const GgufTensor& tensor) const {
  FRUGAL_CHECK(tensor.offset <= bytes_.size() && tensor.bytes <= bytes_.size() - tensor.offset);
  return bytes_.subspan(tensor.offset, tensor.bytes);
}

const GgufValue* GgufFile::find_value(std::string_view key) const {
  const auto at =
      std::lower_bound(values_by_key_.begin(), values_by_key_.end(), key,
                       [&](uint32_t idx, std::string_view wanted) { return values_[idx].key < wanted; });
  if (at == values_by_key_.end() || values_[*at].key != key) return nullptr;
  return &values_[*at];
}

uint64_t GgufTensor::n_elements() const {
  uint64_t product = 1;
  for (const uint64_t size : shape) product *= size;
  return product;
}

std::string GgufTensor::shape_label() const {
  std::string label = "[";
  for (size_t i = 0; i < shape.size(); ++i) label += strf(i == 0 ? "%llu" : " x %llu", ull(shape[i]));
  return label + "]";
}

}  // namespace frugal::llm
