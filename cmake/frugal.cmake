# How a room, a test and a fuzzer are declared. Sources are listed by hand: a test compares the lists with the tree.

# Every target of ours takes its flags from here.
add_library(frugal_options INTERFACE)
target_include_directories(frugal_options INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(frugal_options INTERFACE cxx_std_20)
# No contraction behind our back: a product and a sum are fused only where the code says so (std::fma or an
# intrinsic). What the compiler may fuse depends on its mood and breaks bit-exactness between call sites.
target_compile_options(frugal_options INTERFACE $<BUILD_INTERFACE:-Wall -Wextra -Wshadow -ffp-contract=off>)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overlaps in std::string's own operator+ (GCC bug 105329).
  target_compile_options(frugal_options INTERFACE $<BUILD_INTERFACE:-Wno-restrict>)
endif()
if(FRUGAL_WERROR)
  target_compile_options(frugal_options INTERFACE $<BUILD_INTERFACE:-Werror>)
endif()
if(FRUGAL_SANITIZE)
  target_compile_options(frugal_options INTERFACE $<BUILD_INTERFACE:-fsanitize=${FRUGAL_SANITIZE}
    -fno-sanitize-recover=all -fno-omit-frame-pointer>)
  target_link_options(frugal_options INTERFACE $<BUILD_INTERFACE:-fsanitize=${FRUGAL_SANITIZE}>)
endif()

# ThreadSanitizer maps its shadow at fixed addresses and dies where the kernel randomises more bits than it knows:
# such test programs run without address randomisation, where the host allows that.
set(FRUGAL_TEST_LAUNCHER "")
if(FRUGAL_SANITIZE MATCHES "thread")
  execute_process(COMMAND setarch -R true RESULT_VARIABLE setarch_status OUTPUT_QUIET ERROR_QUIET)
  if(setarch_status EQUAL 0)
    set(FRUGAL_TEST_LAUNCHER setarch -R)
  endif()
endif()

set_property(GLOBAL PROPERTY FRUGAL_ROOMS "")

# frugal_add_room(llm/kv SOURCES a.cc b.cc DEPS base PRIVATE_LIBS Threads::Threads)
# A static library `frugal_llm_kv`, alias frugal::llm_kv. DEPS are rooms that it may include.
function(frugal_add_room room)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_LIBS" ${ARGN})
  string(REPLACE "/" "_" name ${room})
  add_library(frugal_${name} STATIC ${ARG_SOURCES})
  add_library(frugal::${name} ALIAS frugal_${name})
  set_target_properties(frugal_${name} PROPERTIES EXPORT_NAME ${name})
  target_link_libraries(frugal_${name} PUBLIC frugal_options)
  foreach(dep ${ARG_DEPS})
    string(REPLACE "/" "_" dep ${dep})
    target_link_libraries(frugal_${name} PUBLIC frugal_${dep})
  endforeach()
  target_link_libraries(frugal_${name} PRIVATE ${ARG_PRIVATE_LIBS})
  set_property(GLOBAL APPEND PROPERTY FRUGAL_ROOMS frugal_${name})
endfunction()

# frugal_add_test(base/text_test LABELS fast DEPS base): a GoogleTest program, which is one ctest case.
function(frugal_add_test test)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS;DEPS;SOURCES" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  if(FRUGAL_SANITIZE)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 6")
  endif()
  string(REPLACE "/" "." name ${test})
  add_executable(${name} ${PROJECT_SOURCE_DIR}/tests/${test}.cc ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${name} PRIVATE frugal_options GTest::gtest GTest::gtest_main)
  foreach(dep ${ARG_DEPS})
    string(REPLACE "/" "_" dep ${dep})
    target_link_libraries(${name} PRIVATE frugal_${dep})
  endforeach()
  if(FRUGAL_SANITIZE)
    target_link_libraries(${name} PRIVATE frugal_sanitized_dlopen)
    target_link_options(${name} PRIVATE -Wl,--export-dynamic-symbol=dlopen)
  endif()
  add_test(NAME ${name} COMMAND ${FRUGAL_TEST_LAUNCHER} $<TARGET_FILE:${name}> WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "FRUGAL_MODELS=${FRUGAL_MODELS};FRUGAL_DNN_MODELS=${FRUGAL_DNN_MODELS};FRUGAL_COMMAND=$<TARGET_FILE:frugal_cli>")
endfunction()
