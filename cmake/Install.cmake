# `cmake --install` gives find_package(anyprec); the wheel installs only the component "python".
if(SKBUILD)
  return()
endif()
include(CMakePackageConfigHelpers)
set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/anyprec)

set(_targets anyprec_core)
if(ANYPREC_TORCH)
  list(APPEND _targets anyprec_torch)
  # Installed, the library still finds libtorch where it was linked.
  cmake_path(GET LibTorch_c10_LIBRARY PARENT_PATH _libtorch_dir)
  set_target_properties(anyprec_torch PROPERTIES INSTALL_RPATH "${_libtorch_dir}")
endif()
if(ANYPREC_HAVE_CUDA)
  list(APPEND _targets anyprec_cuda)
endif()
install(TARGETS ${_targets} EXPORT anyprecTargets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/anyprec DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT anyprecTargets NAMESPACE anyprec:: DESTINATION ${_package_dir})
configure_package_config_file(cmake/anyprecConfig.cmake.in
  "${CMAKE_CURRENT_BINARY_DIR}/anyprecConfig.cmake" INSTALL_DESTINATION ${_package_dir})
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/anyprecConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/anyprecConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/anyprecConfigVersion.cmake"
              cmake/FindLibTorch.cmake
  DESTINATION ${_package_dir})
