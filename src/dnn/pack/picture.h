// Pictures in 32-bit floats: planes of at most 256 values each, however they were scaled.
// docs/formats/dnn-wire.md.
#pragma once

#include "dnn/pack/pack.h"
#include "dnn/pack/streams.h"

namespace frugal::dnn {

// False, and nothing that is of use written: not a picture.
bool pack_picture(std::span<const std::byte> words, Planes planes, PackWriter& writer);
// kCorrupt: damaged, or not of this form.
Status unpack_picture(PackReader& reader, Planes planes, std::span<std::byte> words);

}  // namespace frugal::dnn
