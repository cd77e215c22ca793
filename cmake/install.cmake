# `cmake --install` gives the libraries, the public headers, the command, and a package for find_package(frugal).
