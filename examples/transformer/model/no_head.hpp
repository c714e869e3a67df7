#pragma once

/// No head: a model's outputs are its last hidden states, T × d. See heads.hpp for what a head has.

#include <random>

#include "activations.hpp"
#include "batch.hpp"
#include "config.hpp"
#include "pass.hpp"
#include "words.hpp"

namespace transformer {

template <class Scalar>
class NoHead {
 public:
  struct Context {};

  explicit NoHead(const Config& config) : width_(config.width) {}

  static bool is_for(Task) { return true; }
  Index output_rows(const Batch& batch) const { return batch.tokens(); }
  Index output_columns() const { return width_; }

  void forward(const ConstRows<Scalar>& h, const Batch&, const Words<Scalar>&, const Pass<Scalar>&,
               Rows<Scalar> outputs, Context&) const {
    outputs = h;
  }

  void backward(const ConstRows<Scalar>&, const Batch&, const Words<Scalar>&, const Pass<Scalar>&,
                const ConstRows<Scalar>& d_outputs, Context&, NoHead&, Words<Scalar>&,
                Rows<Scalar> dh) const {
    dh = d_outputs;
  }

  void initialize(std::mt19937_64&, double) {}

  template <class Self, class Visitor>
  static void visit(Self&, const Visitor&) {}

 private:
  Index width_;
};

}  // namespace transformer
