# Where third-party code comes from: the system first, else what scripts/bootstrap.py has put into the cache.
# Configuring never downloads.
find_package(Threads REQUIRED)
find_package(Python3 COMPONENTS Interpreter REQUIRED)

function(frugal_cache_folder component variable)
  execute_process(COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/scripts/bootstrap.py --print ${component}
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  set(${variable} ${folder} PARENT_SCOPE)
endfunction()
frugal_cache_folder(llama FRUGAL_LLAMA_PREFIX)
frugal_cache_folder(models FRUGAL_MODELS)
frugal_cache_folder(peers FRUGAL_PEERS)
frugal_cache_folder(power FRUGAL_POWER_DATA)
frugal_cache_folder(openvino FRUGAL_OPENVINO_PREFIX)
frugal_cache_folder(dnn-models-small FRUGAL_DNN_MODELS)
frugal_cache_folder(dnn-models FRUGAL_DNN_MODELS_FULL)
frugal_cache_folder(dnn-photo FRUGAL_DNN_PHOTO)

find_package(llama QUIET)
if(NOT llama_FOUND)
  if(NOT EXISTS ${FRUGAL_LLAMA_PREFIX}/.complete)
    message(FATAL_ERROR "llama.cpp is not built yet: run `python3 scripts/bootstrap.py` (or `make`), then configure again.")
  endif()
  find_package(llama REQUIRED PATHS ${FRUGAL_LLAMA_PREFIX} NO_DEFAULT_PATH)
endif()
find_package(OpenVINO 2026 QUIET COMPONENTS Runtime)
if(NOT OpenVINO_FOUND)
  if(NOT EXISTS ${FRUGAL_OPENVINO_PREFIX}/.complete)
    message(FATAL_ERROR "OpenVINO is not unpacked yet: run `python3 scripts/bootstrap.py` (or `make`), then configure again.")
  endif()
  find_package(OpenVINO REQUIRED COMPONENTS Runtime PATHS ${FRUGAL_OPENVINO_PREFIX}/openvino/cmake NO_DEFAULT_PATH)
endif()

# frugal_find_system(SQLite3 libsqlite3-dev): a package of the system, or the name of the Debian package to install.
macro(frugal_find_system package debian)
  find_package(${package} QUIET)
  if(NOT ${package}_FOUND)
    message(FATAL_ERROR "${package} is missing: run `python3 scripts/bootstrap.py` (or `make`), or `apt-get install ${debian}`, "
      "then configure again.")
  endif()
endmacro()
frugal_find_system(nlohmann_json nlohmann-json3-dev)
frugal_find_system(SQLite3 libsqlite3-dev)
# Debian's own CMake package of libnats names a static library that it does not ship.
find_library(FRUGAL_NATS nats)
if(NOT FRUGAL_NATS)
  message(FATAL_ERROR "libnats is missing: run `python3 scripts/bootstrap.py` (or `make`), or `apt-get install libnats-dev`, "
    "then configure again.")
endif()
# Debian builds the HTTP library as a shared object with these options, and the header's classes change with them.
find_library(FRUGAL_HTTPLIB cpp-httplib)
if(NOT FRUGAL_HTTPLIB)
  message(FATAL_ERROR "libcpp-httplib is missing: run `python3 scripts/bootstrap.py` (or `make`), or `apt-get install "
    "libcpp-httplib-dev`, then configure again.")
endif()
set(FRUGAL_HTTPLIB_DEFINITIONS CPPHTTPLIB_OPENSSL_SUPPORT CPPHTTPLIB_ZLIB_SUPPORT CPPHTTPLIB_BROTLI_SUPPORT)
find_library(FRUGAL_MICROHTTPD microhttpd)
if(NOT FRUGAL_MICROHTTPD)
  message(FATAL_ERROR "libmicrohttpd is missing: run `python3 scripts/bootstrap.py` (or `make`), or `apt-get install "
    "libmicrohttpd-dev`, then configure again.")
endif()
find_library(FRUGAL_ZSTD zstd)
if(NOT FRUGAL_ZSTD)
  message(FATAL_ERROR "libzstd is missing: run `python3 scripts/bootstrap.py` (or `make`), or `apt-get install libzstd-dev`, "
    "then configure again.")
endif()
if(FRUGAL_DEVELOPER)
  frugal_find_system(CLI11 libcli11-dev)
  frugal_find_system(GTest libgtest-dev)
endif()
