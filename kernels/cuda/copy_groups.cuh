#pragma once

/// Groups of asynchronous copies (ptx::copy_16) of one thread.
namespace anyprec::cuda::ptx {

/// Makes a group of the thread's copies since the last one.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Until at most kPending of the thread's latest groups of copies are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace anyprec::cuda::ptx
