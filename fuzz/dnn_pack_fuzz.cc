// Fuzzes packed tensors: as they may come from another host, and as they are made here, which must come back.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"
#include "dnn/pack/pack.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace frugal;
  using namespace frugal::dnn;
  if (size < 3) return 0;
  const Planes planes{size_t{1} + data[0] % 64, size_t{1} + data[1] % 64};
  const auto bytes = std::as_bytes(std::span(data + 3, size - 3));
  std::vector<std::byte> words(4 * planes.rows * planes.columns * (1 + data[2] % 8));
  (void)unpack_words(bytes, planes, words);
  const auto whole = bytes.first(bytes.size() / 4 * 4);
  for (const Planes& form : {planes, Planes{1, std::max<size_t>(1, whole.size() / 4)}}) {
    const std::vector<std::byte> packed = pack_words(whole, form);
    if (packed.empty()) continue;
    std::vector<std::byte> again(whole.size());
    FRUGAL_CHECK(unpack_words(packed, form, again).ok());
    FRUGAL_CHECK(std::memcmp(again.data(), whole.data(), whole.size()) == 0);
  }
  return 0;
}
