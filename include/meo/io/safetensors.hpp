#pragma once

/// Reads and writes safetensors files, the format of https://github.com/huggingface/safetensors.
///
///     const meo::io::SafetensorsReader file("model.safetensors");
///     const meo::Matrix<float> weight = file.read_matrix<float>("weight", 3072, 768);
///
///     meo::io::SafetensorsWriter copy;
///     copy.add("weight", weight);
///     copy.write("copy.safetensors");

#include <meo/io/dtype.hpp>
#include <meo/io/error.hpp>
#include <meo/io/output_file.hpp>
#include <meo/io/safetensors_reader.hpp>
#include <meo/io/safetensors_writer.hpp>
