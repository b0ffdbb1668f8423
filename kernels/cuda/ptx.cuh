#pragma once

#include <cstdint>

/// The PTX that the kernels use, by what it does. Where an architecture lacks programmatic
/// dependent launch, its two calls do nothing.
namespace anyprec::cuda::ptx {

/// Lets the next kernel of the stream start its preamble.
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until all that came before in the stream is done and visible.
__device__ __forceinline__ void wait_for_predecessors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

/// kThreads threads of the block wait for one another at barrier kBarrier, from 1 (0 is that of
/// __syncthreads) to 15.
template <int kBarrier, int kThreads>
__device__ __forceinline__ void meet() {
  asm volatile("bar.sync %0, %1;" ::"n"(kBarrier), "n"(kThreads) : "memory");
}

// ---- barriers in shared memory (addresses from shared_address) ----

__device__ __forceinline__ void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(barrier)
               : "memory");
}

/// The thread arrives when all its earlier copies (copy_16) have landed.
__device__ __forceinline__ void barrier_arrive_after_copies(std::uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
#if __CUDA_ARCH__ >= 900
#define ANYPREC_MBARRIER_WAIT "mbarrier.try_wait.parity.shared::cta.b64"
#else
#define ANYPREC_MBARRIER_WAIT "mbarrier.test_wait.parity.shared::cta.b64"
#endif
  asm volatile(
      "{\n.reg .pred done;\n"
      "again_%=:\n" ANYPREC_MBARRIER_WAIT
      " done, [%0], %1;\n"
      "@!done bra again_%=;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
#undef ANYPREC_MBARRIER_WAIT
}

#if __CUDA_ARCH__ >= 900

/// The barrier's phase ends when its arrivals and that many bytes have come.
__device__ __forceinline__ void barrier_arrive_and_expect(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

#endif

// ---- copies ----

/// 16 bytes from global to shared memory, both aligned, past the L1 cache.
__device__ __forceinline__ void copy_16(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

/// 4 bytes.
__device__ __forceinline__ void copy_4(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

/// 8 bytes.
__device__ __forceinline__ void copy_8(std::uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void store_shared(std::uint32_t shared, std::uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(shared), "r"(value) : "memory");
}

/// Ends a group of copies.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Until at most kPending of the thread's latest groups of copies are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

#if __CUDA_ARCH__ >= 900

/// Both aligned to 16 bytes; counted by the barrier.
__device__ __forceinline__ void copy_bulk(std::uint32_t shared, const void* global, int bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

#endif

#if __CUDA_ARCH__ >= 900

/// Asks for a run of global memory into the L2 cache; address and size in pieces of 16 bytes.
__device__ __forceinline__ void prefetch_bulk(const void* global, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

#endif

inline constexpr int kLineBytes = 128;

/// Asks for a line of global memory into the L2 cache.
__device__ __forceinline__ void prefetch_line(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

#if __CUDA_ARCH__ >= 900

// ---- blocks of a cluster ----

/// All threads of all blocks arrive, and later wait for all to have arrived. What a thread wrote
/// before it arrived is seen after that.
__device__ __forceinline__ void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// Arrives without making anything seen but barriers (fence_barrier_inits).
__device__ __forceinline__ void arrive_at_cluster_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
/// What the thread has initialized is seen by blocks of the cluster after they have met.
__device__ __forceinline__ void fence_barrier_inits() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void meet_all_of_cluster() {
  arrive_at_cluster();
  wait_for_cluster();
}
/// At what is this block's `shared` in block `rank`.
__device__ __forceinline__ std::uint32_t remote_address(std::uint32_t shared, int rank) {
  std::uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared), "r"(rank));
  return remote;
}
__device__ __forceinline__ void store_remote(std::uint32_t shared, int rank, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote_address(shared, rank)), "f"(value)
               : "memory");
}
/// Two floats of shared memory, the bits of the value's lower and upper half: see `stored`.
__device__ __forceinline__ void store_remote(std::uint32_t shared, int rank, std::uint64_t value) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    store_remote(shared + 4 * h, rank,
                 __uint_as_float(static_cast<std::uint32_t>(value >> (32 * h))));
  }
}
__device__ __forceinline__ std::uint64_t stored(const float (&halves)[2]) {
  return static_cast<std::uint64_t>(__float_as_uint(halves[1])) << 32 | __float_as_uint(halves[0]);
}
/// Four floats to another block's shared memory, 16-byte aligned, counted by a barrier there: 16
/// bytes. Needs no fence: whoever waits for the barrier sees them.
__device__ __forceinline__ void store_remote_four(std::uint32_t shared, int rank,
                                                  const float (&four)[4], std::uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(remote_address(shared, rank)),
      "f"(four[0]), "f"(four[1]), "f"(four[2]), "f"(four[3]), "r"(remote_address(barrier, rank))
      : "memory");
}
/// Tells another block that this thread has read; what it has written need not be seen there.
__device__ __forceinline__ void barrier_arrive_remote(std::uint32_t barrier, int rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(remote_address(barrier, rank))
               : "memory");
}
/// Of this block, for arrivals of others.
__device__ __forceinline__ void barrier_wait_cluster(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

#endif

// ---- tensor cores ----

/// c[16][8] += a[16][16] b[16][8]. Lane 4 g + t: a = {row g, columns 2 t, 2 t + 1}, {row g + 8, the
/// same}, {row g, 2 t + 8, 2 t + 9}, {row g + 8, the same}; b = rows 2 t, 2 t + 1 and 2 t + 8,
/// 2 t + 9 of column g; c = rows g and g + 8 of columns 2 t, 2 t + 1. Which columns of W a step's
/// sixteen are does not matter, as long as a and b agree.
__device__ __forceinline__ void mma_16816(float (&c)[4], const std::uint32_t (&a)[4],
                                          std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// c[16][8] += popcount(a[16][256 bits] & b[256 bits][8]). Lane 4 g + t: a = {row g, first half of
/// the columns}, {row g + 8, first}, {row g, second}, {row g + 8, second}, word t of each half; b =
/// words t of both halves of column g; c = rows g and g + 8 of columns 2 t, 2 t + 1.
__device__ __forceinline__ void binary_mma(std::int32_t (&c)[4], const uint4& a, const uint2& b) {
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

/// The same over 128 columns, one word of a row.
__device__ __forceinline__ void binary_mma_half(std::int32_t (&c)[4], std::uint32_t a0,
                                                std::uint32_t a1, std::uint32_t b) {
  asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc "
      "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// ---- bits ----

/// The Boolean function of three inputs whose value for (a, b, c) is bit 4 a + 2 b + c of kTruth.
template <int kTruth>
__device__ __forceinline__ std::uint32_t boolean(std::uint32_t a, std::uint32_t b,
                                                 std::uint32_t c) {
  std::uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kTruth));
  return d;
}

/// Bits of a where kMask has ones, of b where it has zeros.
template <std::uint32_t kMask>
__device__ __forceinline__ std::uint32_t choose(std::uint32_t a, std::uint32_t b) {
  return (a & kMask) | (b & ~kMask);
}

}  // namespace anyprec::cuda::ptx
