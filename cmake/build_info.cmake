# Run at every build: writes build_info.h with the commit that is being compiled, only when it changed.
#   cmake -DSOURCE=dir -DOUT=file -DCOMPILER=text -DFLAGS=text -P build_info.cmake
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
  OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT commit)
  set(commit "unknown")
endif()
file(WRITE ${OUT}.new "#pragma once
#define FRUGAL_COMMIT \"${commit}\"
#define FRUGAL_COMPILER \"${COMPILER}\"
#define FRUGAL_FLAGS \"${FLAGS}\"
")
execute_process(COMMAND ${CMAKE_COMMAND} -E copy_if_different ${OUT}.new ${OUT})
