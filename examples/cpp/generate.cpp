// generate CHECKPOINT BITS NEW_TOKENS TOKEN...
// Continues a prompt of tokens with the decode engine and prints each new token as it comes.
#include <anyprec/engine.h>
#include <anyprec/error.h>

#include <charconv>
#include <cstdio>
#include <string_view>
#include <vector>

namespace {

std::int64_t number(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw anyprec::InvalidArgument("found '" + std::string(text) + "', wanted an integer");
  }
  return value;
}

int run(const std::vector<std::string_view>& arguments) {
  if (arguments.size() < 4) {
    std::fprintf(stderr, "usage: generate CHECKPOINT BITS NEW_TOKENS TOKEN...\n");
    return 2;
  }
  const int bits = static_cast<int>(number(arguments[1]));
  anyprec::EngineOptions options;
  options.precisions = {bits};  // reads and holds no others
  anyprec::Engine engine(arguments[0], options);

  anyprec::Request request;
  request.precision = bits;
  request.max_new_tokens = number(arguments[2]);
  for (std::size_t i = 3; i < arguments.size(); ++i) request.prompt.push_back(number(arguments[i]));
  engine.submit(request);
  while (!engine.idle()) {
    for (const anyprec::TokenEvent& event : engine.step()) {
      std::printf("%lld\n", static_cast<long long>(event.token));
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const anyprec::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
