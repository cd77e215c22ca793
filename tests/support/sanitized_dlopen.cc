// Sanitizers end a program that opens a library with RTLD_DEEPBIND, as OpenVINO's threads do with a library
// that pins them. Test programs under a sanitizer open it without.
#include <dlfcn.h>

extern "C" void* dlopen(const char* name, int flags) noexcept {
  using Open = void* (*)(const char*, int);
  static const auto next = reinterpret_cast<Open>(dlsym(RTLD_NEXT, "dlopen"));
  return next(name, flags & ~RTLD_DEEPBIND);
}
