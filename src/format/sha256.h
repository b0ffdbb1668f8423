#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace anyprec::format {

/// SHA-256 (FIPS 180-4) over data that arrives in pieces.
class Sha256 {
 public:
  Sha256();
  void update(std::span<const std::byte> data);
  /// The digest as 64 lower-case hexadecimal digits. Ends the computation.
  std::string hex();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

std::string sha256_hex(std::span<const std::byte> data);
std::string sha256_hex(std::string_view text);

}  // namespace anyprec::format
