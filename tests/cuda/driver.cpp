// SPDX-License-Identifier: MIT
// The CUDA part through its C interface alone, without torch: every launch, each result beside the CPU's, bit for bit.
//
//     driver [brief]
//
// "brief" is what compute-sanitizer has the time for, and `make cpptest`, where the library's sources run on what
// stands in for CUDA (stand_in/).
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string_view>

#include "call_cases.hpp"
#include "device.h"
#include "mass_cases.hpp"
#include "sampling_cases.hpp"
#include "target_cases.hpp"
#include "transfer_cases.hpp"

int main(int count, char** arguments) {
  const bool is_brief = count > 1 && std::string_view{arguments[1]} == "brief";
  try {
    std::cout << "run-time " << fastreplay_cuda_runtime_version() << ", driver " << fastreplay_cuda_driver_version()
              << ", devices " << fastreplay_cuda_device_count() << std::endl;
    call_cases::check_calls();
    transfer_cases::check_transfers();
    sampling_cases::check_sampling(is_brief);
    mass_cases::check_masses(is_brief);
    target_cases::check_updates(is_brief);
  } catch (const std::exception& error) {
    std::cerr << "ended by " << error.what() << '\n';
    (void)check::result();
    return EXIT_FAILURE;
  }
  return check::result();
}
