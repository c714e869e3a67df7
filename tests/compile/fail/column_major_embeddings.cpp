// expect: meo: only a row-major matrix with contiguous rows can be viewed; copy it to a meo::Matrix
#include <meo/meo.hpp>

#ifdef MEO_CONTROL
using Embeddings = meo::Matrix<float>;
#else
using Embeddings = Eigen::MatrixXf;
#endif

void use(const meo::MeoLayer<float, 8>& layer, const meo::Matrix<float>& x, const Embeddings& embeddings) {
  layer.forward(x, {.task_embeddings = embeddings});
}
