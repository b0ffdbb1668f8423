#pragma once

#include <functional>

namespace anyprec::testing {

/// The test binary defines fsync, rename and renameat2 itself (system_calls.cpp), so that a test
/// can kill the process in front of any of them, or make one fail.
///
/// hook(call, directory): called in front of each; `directory` says whether fsync was given one.
/// Returns the error number that the call shall fail with, or 0 to let it through.
enum class SystemCall { kFsync, kRename, kRenameNoReplace, kRenameExchange };
using SystemCallHook = std::function<int(SystemCall call, bool directory)>;

/// Installs a hook while it lives.
class HookedSystemCalls {
 public:
  explicit HookedSystemCalls(SystemCallHook hook);
  ~HookedSystemCalls();
  HookedSystemCalls(const HookedSystemCalls&) = delete;
  HookedSystemCalls& operator=(const HookedSystemCalls&) = delete;
};

}  // namespace anyprec::testing
