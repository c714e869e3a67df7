# A port of the tree that it lies in: vcpkg install meo --overlay-ports=<meo>/.packaging/vcpkg

set(VCPKG_BUILD_TYPE release)  # headers: there is nothing to debug

cmake_path(ABSOLUTE_PATH CURRENT_PORT_DIR NORMALIZE OUTPUT_VARIABLE port)
cmake_path(APPEND port ../../.. OUTPUT_VARIABLE source)
cmake_path(NORMAL_PATH source)

vcpkg_cmake_configure(SOURCE_PATH ${source}
  OPTIONS -DMEO_BUILD_TESTS=OFF -DMEO_BUILD_EXAMPLES=OFF -DMEO_BUILD_BENCHMARKS=OFF -DMEO_MPI=OFF
          -DMEO_INSTALL=ON)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/meo)
vcpkg_fixup_pkgconfig()

file(REMOVE_RECURSE ${CURRENT_PACKAGES_DIR}/share/doc)
vcpkg_install_copyright(FILE_LIST ${source}/LICENSE)
