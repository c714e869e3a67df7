/// Knows nothing of the library.

#include <cstdio>

extern "C" bool is_right_here();
extern "C" bool is_right_there();

int main() {
  const bool here = is_right_here(), there = is_right_there();
  std::printf("here %s, there %s\n", here ? "right" : "wrong", there ? "right" : "wrong");
  return here && there ? 0 : 1;
}
