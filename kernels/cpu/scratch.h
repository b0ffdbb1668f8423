#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace anyprec::cpu {

/// Working memory of one call, on a cache line's boundary; its contents start undefined.
template <class T>
class Scratch {
 public:
  explicit Scratch(std::int64_t count)
      : data_(static_cast<T*>(::operator new(sizeof(T) * count, kAlignment))) {}
  T* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* data) const { ::operator delete(data, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace anyprec::cpu
