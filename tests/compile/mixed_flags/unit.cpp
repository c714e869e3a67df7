/// A unit that includes the library and calls none of its functions. With MAIN it has the program's main.

#include <cstdio>

#include <meo/types.hpp>

#if defined(MAIN)
int main() { std::puts("started"); }
#endif
