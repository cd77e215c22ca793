# `cmake --install` gives the libraries, the public headers, the command, and a package for find_package(frugal).
# Consumers link frugal::frugal, or single rooms (frugal::llm_decode). Third-party libraries that a room links are
# looked for by the package in turn; llama.cpp travels along when it came from our cache, so that an install does not
# depend on a cache folder.
include(CMakePackageConfigHelpers)

set(FRUGAL_INSTALL_CMAKE ${CMAKE_INSTALL_LIBDIR}/cmake/frugal)
set(FRUGAL_INSTALL_LLAMA ${CMAKE_INSTALL_LIBDIR}/frugal/llama)

get_property(rooms GLOBAL PROPERTY FRUGAL_ROOMS)
get_property(not_installed GLOBAL PROPERTY FRUGAL_ROOMS_NOT_INSTALLED)
if(not_installed)
  list(REMOVE_ITEM rooms ${not_installed})
endif()

add_library(frugal_all INTERFACE)
add_library(frugal::frugal ALIAS frugal_all)
set_target_properties(frugal_all PROPERTIES EXPORT_NAME frugal)
target_link_libraries(frugal_all INTERFACE ${rooms})

install(TARGETS frugal_options frugal_all ${rooms} EXPORT frugalTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT frugalTargets NAMESPACE frugal:: DESTINATION ${FRUGAL_INSTALL_CMAKE})
install(DIRECTORY include/frugal DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
if(FRUGAL_DEVELOPER)
  install(TARGETS frugal_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

set(FRUGAL_LLAMA_TRAVELS OFF)
if(llama_DIR MATCHES "^${FRUGAL_LLAMA_PREFIX}/")
  set(FRUGAL_LLAMA_TRAVELS ON)
  install(DIRECTORY ${FRUGAL_LLAMA_PREFIX}/include ${FRUGAL_LLAMA_PREFIX}/lib DESTINATION ${FRUGAL_INSTALL_LLAMA})
endif()
set(FRUGAL_OPENVINO_TRAVELS OFF)
if(OpenVINO_DIR MATCHES "^${FRUGAL_OPENVINO_PREFIX}/")
  set(FRUGAL_OPENVINO_TRAVELS ON)
  install(DIRECTORY ${FRUGAL_OPENVINO_PREFIX}/openvino DESTINATION ${CMAKE_INSTALL_LIBDIR}/frugal)
  if(FRUGAL_DEVELOPER)  # the command finds the libraries that travel with it, wherever the prefix is moved to
    set_target_properties(frugal_cli PROPERTIES
      INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}/frugal/openvino/libs")
  endif()
endif()

# The packages that our exported targets name, found out from what the rooms link.
set(FRUGAL_DEPENDENCIES "find_dependency(Threads)\n")
set(linked "")
foreach(room ${rooms})
  get_target_property(libraries ${room} LINK_LIBRARIES)
  list(APPEND linked ${libraries})
endforeach()
if(linked MATCHES "SQLite")
  string(APPEND FRUGAL_DEPENDENCIES "find_dependency(SQLite3)\n")
endif()
if(linked MATCHES "nlohmann_json")
  string(APPEND FRUGAL_DEPENDENCIES "find_dependency(nlohmann_json)\n")
endif()
if(linked MATCHES "openvino")
  if(FRUGAL_OPENVINO_TRAVELS)
    string(APPEND FRUGAL_DEPENDENCIES
      "find_dependency(OpenVINO COMPONENTS Runtime PATHS "
      "\"\${FRUGAL_PREFIX_DIR}/${CMAKE_INSTALL_LIBDIR}/frugal/openvino/cmake\" NO_DEFAULT_PATH)\n")
  else()
    string(APPEND FRUGAL_DEPENDENCIES "find_dependency(OpenVINO COMPONENTS Runtime)\n")
  endif()
endif()
if(linked MATCHES "(^|;)llama(;|$)|ggml")
  if(FRUGAL_LLAMA_TRAVELS)
    string(APPEND FRUGAL_DEPENDENCIES
      "find_dependency(llama PATHS \"\${FRUGAL_PREFIX_DIR}/${FRUGAL_INSTALL_LLAMA}\" NO_DEFAULT_PATH)\n")
  else()
    string(APPEND FRUGAL_DEPENDENCIES "find_dependency(llama)\n")
  endif()
endif()

configure_package_config_file(cmake/frugalConfig.cmake.in ${PROJECT_BINARY_DIR}/frugalConfig.cmake
  INSTALL_DESTINATION ${FRUGAL_INSTALL_CMAKE})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/frugalConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/frugalConfig.cmake ${PROJECT_BINARY_DIR}/frugalConfigVersion.cmake
  DESTINATION ${FRUGAL_INSTALL_CMAKE})
