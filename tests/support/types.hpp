#pragma once

namespace meo::test {

/// What a test of templates computes in and what it stores.
template <class S, class T = S>
struct Types {
  using Scalar = S;
  using Storage = T;
};

}  // namespace meo::test
